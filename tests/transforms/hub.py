"""Local stand-in for the Hugging Face hub's API with one dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

DATASET = "org/texts"


class Hub(BaseHTTPRequestHandler):
    """Serve the files of each revision; a commit is 40 hexadecimal digits."""

    protocol_version = "HTTP/1.1"
    revisions: ClassVar[Mapping[str, str]] = {}
    files: ClassVar[Mapping[str, Mapping[str, bytes]]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/datasets/{DATASET}(?:/revision/([^/]+))?", path):
            commit = self._commit(match[1] or "main")
            if commit is None:
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            info = {"id": DATASET, "sha": commit, "siblings": [], "tags": []}
            self._answer(200, json.dumps(info).encode())
        elif match := re.fullmatch(rf"/api/datasets/{DATASET}/(?:tree|paths-info)/([^/]+).*", path):
            commit = self._commit(match[1])
            assert commit is not None
            entries: list[dict[str, object]] = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files[commit].items()
            ]
            folders = {name.rpartition("/")[0] for name in self.files[commit]} - {""}
            entries += [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders]
            self._answer(200, json.dumps(entries).encode())
        elif match := re.fullmatch(rf"/datasets/{DATASET}/resolve/([0-9a-f]{{40}})/(.+)", path):
            content = self.files[match[1]][match[2]]
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if found:
                first, last = int(found[1]), min(int(found[2]), len(content) - 1)
                bounds = f"bytes {first}-{last}/{len(content)}"
                self._answer(206, content[first : last + 1], {"Content-Range": bounds})
            else:
                self._answer(200, content)
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        wanted = json.loads(self.rfile.read(length) or b"{}").get("paths", [])
        match = re.fullmatch(rf"/api/datasets/{DATASET}/paths-info/([^/]+)", self.path)
        commit = self._commit(match[1]) if match else None
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.files.get(commit or "", {}).items()
            if name in wanted
        ]
        self._answer(200, json.dumps(entries).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _commit(self, revision: str) -> str | None:
        return self.revisions.get(revision, revision if revision in self.files else None)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve() -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", 0), Hub)
