"""Rules of Cloud Storage that the emulator lacks: preconditions and a retention policy."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit

UNTIL = "2999-01-01T00:00:00-08:00"


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def place(self) -> str:
        return urlsplit(self.path).path

    @property
    def object(self) -> str | None:
        """Path of the object's metadata, if the request is about an object."""
        if self.kind in ("multipart", "resumable"):
            described = json.loads(self.body[self.body.index(b"{") : self.body.index(b"}") + 1])
            return f"{self.place.removeprefix('/upload')}/{quote(described['name'], safe='')}"
        return self.place if "/o/" in self.place else None

    @property
    def kind(self) -> str:
        """Kind of the request, for the counts."""
        if "upload_id" in self.query:
            return "part"
        if self.place.startswith("/upload/"):
            return "cancel" if self.method == "DELETE" else self.query["uploadType"]
        if self.place.startswith("/batch/"):
            return "batch"
        if self.method == "GET" and "/o/" in self.place:
            return "read" if "/download/" in self.place else "describe"
        if self.method == "GET":
            return "list" if self.place.endswith("/o") else "bucket"
        return self.method.lower()


Send = Callable[[Request], Answer]


@dataclass
class BucketRules:
    """Refuse the requests that the real store refuses, and count all requests.

    Attributes:
        retained: True if the bucket has a retention policy that still protects every object.
        unavailable_in_batches: part of the path of objects that a batch cannot delete.
        requests: number of requests by `Request.kind`.
    """

    retained: bool = False
    unavailable_in_batches: str | None = None
    requests: Counter[str] = field(default_factory=Counter)
    _begun: dict[str, Request] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def forward(self, request: Request, send: Send) -> Answer:
        """Answer a request, or send it to the emulator, one at a time so that the rules hold."""
        with self._lock:
            if request.kind != "bucket":  # The client sends one for its own tracing.
                self.requests[request.kind] += 1
            if request.kind == "batch":
                return self._batch(request, send)
            # The first request of an upload in parts has its object and precondition.
            about = self._begun.get(request.query.get("upload_id", ""), request)
            if (refused := self._refused(about, send)) and not _more_follows(request):
                return refused
            answer = send(request)
            if request.kind == "resumable":
                location = dict(answer.headers).get("Location", "")
                upload = parse_qs(urlsplit(location).query).get("upload_id", [""])[0]
                self._begun[upload] = request
            return answer

    def _batch(self, request: Request, send: Send) -> Answer:
        """Delete one object after another; the emulator's own batches do not apply the rules."""
        parts = []
        for line in request.body.decode().splitlines():
            if line.startswith("DELETE "):
                single = Request("DELETE", urlsplit(line.split()[1]).path, {}, b"")
                if self.unavailable_in_batches and self.unavailable_in_batches in single.path:
                    answer = _error(503, "backendError", "not now")
                else:
                    answer = self._refused(single, send) or send(single)
                parts.append(
                    f"--part\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {answer.status} "
                    f"{answer.reason}\r\nContent-Type: application/json\r\n\r\n"
                    f"{answer.body.decode()}\r\n"
                )
        body = "".join(parts) + "--part--"
        headers = [("Content-Type", "multipart/mixed; boundary=part")]
        return Answer(200, "OK", headers, body.encode())

    def _refused(self, request: Request, send: Send) -> Answer | None:
        if request.object is None or request.method in ("GET", "PATCH"):
            return None
        found = send(Request("GET", request.object, {}, b""))
        generation = json.loads(found.body)["generation"] if found.status == 200 else "0"
        if request.query.get("ifGenerationMatch", generation) != generation:
            return _error(412, "conditionNotMet", "At least one of the pre-conditions did not hold")
        if self.retained and found.status == 200:
            return _retention_not_met(request.object)
        return None


def _more_follows(request: Request) -> bool:
    return request.headers.get("content-range", "").endswith("/*")


def _retention_not_met(name: str) -> Answer:
    said = (
        f"Object '{unquote(name)}' is subject to bucket's retention policy or object retention and "
        f"cannot be deleted or overwritten until {UNTIL}"
    )
    return _error(403, "retentionPolicyNotMet", said)


def _error(status: int, reason: str, message: str) -> Answer:
    each = {"message": message, "domain": "global", "reason": reason}
    body = {"error": {"code": status, "message": message, "errors": [each]}}
    headers = [("Content-Type", "application/json; charset=UTF-8")]
    return Answer(status, reason, headers, json.dumps(body).encode())
