"""Proxy in front of an emulator of Cloud Storage that injects and counts seeded network faults.

Like the real store, the proxy accepts a part of a resumable upload only once, even if a client
sends it twice because the response was lost. The emulator alone rejects the second request.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.end_to_end.bucket_rules import Answer, BucketRules, Request

FAULTS = ("429", "503", "slow", "cut before", "cut within", "cut after")
"""Too many requests; service unavailable; a response in pieces; no response and no effect; half a
response; no response, but the full effect."""

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class FaultyProxy:
    """State and settings of the proxy.

    Attributes:
        target: address of the emulator.
        share: fraction of requests with a fault.
        random: source of the faults.
        address: address of the proxy, for `STORAGE_EMULATOR_HOST`.
        faults: number of faults of each kind so far.
        once: fault for the next request of a kind, not counted in `faults`.
        rules: rules of the store, with the requests that reached it.
    """

    target: str
    share: float
    random: random.Random
    address: str = ""
    faults: Counter[str] = field(default_factory=Counter)
    once: dict[str, str] = field(default_factory=dict)
    rules: BucketRules = field(default_factory=BucketRules)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _uploaded: dict[tuple[str, str], Answer] = field(default_factory=dict)

    def draw(self, kind: str) -> str | None:
        """Return the fault for the next request, given its `Request.kind`; None for no fault."""
        with self._lock:
            if kind in self.once:
                return self.once.pop(kind)
            if self.random.random() >= self.share:
                return None
            # Cycle through the kinds, so that a few faults cover several in any order of requests.
            fault = FAULTS[self.faults.total() % len(FAULTS)]
            self.faults[fault] += 1
            return fault

    def forward(self, request: Request) -> Answer:
        """Forward a request, unless its upload has already received it."""
        part = (request.path, request.headers.get("content-range", ""))
        resumable = request.kind == "part" and not part[1].startswith("bytes */")
        if resumable and part in self._uploaded:
            return self._uploaded[part]
        answer = self.rules.forward(request, self._send)
        if resumable and answer.status in (200, 308):
            self._uploaded[part] = answer
        return answer

    def _send(self, request: Request) -> Answer:
        connection = http.client.HTTPConnection(self.target.removeprefix("http://"))
        try:
            connection.request(request.method, request.path, request.body or None, request.headers)
            found = connection.getresponse()
            content = found.read()
            if found.getheader("Content-Type") == "application/json":
                # Links to an object's content must also lead to the proxy.
                content = content.replace(self.target.encode(), self.address.encode())
            return Answer(found.status, found.reason, found.getheaders(), content)
        finally:
            connection.close()


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, body)
            fault = proxy.draw(request.kind)
            if fault == "cut before":
                self.cut()
                return
            if fault in ("429", "503"):
                self.answer(Answer(int(fault), "not now", [], b"{}"))
                return
            answer = proxy.forward(request)
            if fault == "cut after":
                self.cut()
            elif fault == "cut within":
                self.answer(answer, len(answer.body) // 2)
                self.cut()
            else:
                self.answer(answer, pause=0.05 if fault == "slow" else 0.0)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_request

        def answer(self, answer: Answer, end: int | None = None, pause: float = 0.0) -> None:
            self.send_response(answer.status, answer.reason)
            for name, value in answer.headers:
                if name.lower() not in (HOP_BY_HOP | {"server", "date"}):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            body = answer.body[:end]
            middle = len(body) // 2
            self.wfile.write(body[:middle])
            time.sleep(pause)
            self.wfile.write(body[middle:])

        def cut(self) -> None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@contextmanager
def faulty_proxy(target: str, share: float, seed: int) -> Iterator[FaultyProxy]:
    """Serve a proxy in front of `target`, such as http://localhost:9023."""
    proxy = FaultyProxy(target, share, random.Random(seed))
    server = ThreadingHTTPServer(("localhost", 0), _handler(proxy))
    server.daemon_threads = True
    proxy.address = f"http://localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
