"""A stand-in for Cloud Storage with a speed per connection and a latency per request."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from activation_dataset.checksum import crc32c, extend, to_text

BUCKET = "bucket"
PIECE = 1 << 18


@dataclass(frozen=True)
class Uploaded:
    """An object that was uploaded: its size, its CRC32C, and its content if that is small."""

    size: int = 0
    crc: int = 0
    content: bytes = b""


@dataclass
class Store:
    """Objects and behavior of the stand-in.

    Attributes:
        speed: bytes per second of each connection.
        latency: seconds of each request.
        folder: its files are objects too, whose generation is the time of their last change.
        uploaded: uploaded objects by name.
        faults: one for each of the next content requests: "503"; "short", a complete response with
            half of the range; "cut", half of a response; "whole", all bytes instead of the range.
        requests: number of requests for content.
    """

    speed: float
    latency: float
    folder: Path | None = None
    uploaded: dict[str, Uploaded] = field(default_factory=dict)
    faults: deque[str] = field(default_factory=deque)
    requests: int = 0

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects that begin with a prefix, in order."""
        names = {name for name in self.uploaded if not name.startswith("upload ")}
        if self.folder:
            files = (path for path in self.folder.rglob("*") if path.is_file())
            names |= {path.relative_to(self.folder).as_posix() for path in files}
        return sorted(name for name in names if name.startswith(prefix))

    def metadata(self, name: str) -> dict[str, str] | None:
        """Return an object's metadata in the JSON API; None if there is no such object."""
        found = {"name": name, "bucket": BUCKET, "metageneration": "1"}
        if name in self.uploaded:
            object = self.uploaded[name]
            size = {"size": str(object.size), "crc32c": to_text(object.crc)}
            return found | size | {"generation": "1"}
        if name and self.folder and (path := self.folder / name).is_file():
            stat = path.stat()
            return found | {"size": str(stat.st_size), "generation": str(stat.st_mtime_ns)}
        return None


class Server(ThreadingHTTPServer):
    """Server of a store on a free port of localhost. The caller starts it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, store: Store) -> None:
        super().__init__(("localhost", 0), _Handler)
        self.store = store

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing, because clients may disconnect."""


class _Handler(BaseHTTPRequestHandler):
    """Handler of the JSON API requests that the job's writer and the reader send."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """Return metadata or, with `alt=media`, content of an object, or list objects."""
        start, store = time.monotonic(), self.server.store
        time.sleep(store.latency)
        path, _, options = self.path.partition("?")
        query = {key: values[0] for key, values in urllib.parse.parse_qs(options).items()}
        name = urllib.parse.unquote(path.partition("/o/")[2])
        if path.endswith("/o"):
            self._list(query)
        elif not name:  # The bucket itself.
            self._answer(200, b"{}")
        elif (found := store.metadata(name)) is None:
            self._answer(404, b"{}")
        elif query.get("alt") == "media":
            self._send(name, int(found["size"]), start)
        else:
            self._answer(200, json.dumps(found).encode())

    def do_POST(self) -> None:
        """Accept an upload in one request, or start an upload in parts."""
        taken = b"".join(map(bytes, self._pieces()))
        query = urllib.parse.parse_qs(self.path.partition("?")[2])
        uploaded = self.server.store.uploaded
        if query["uploadType"] == ["multipart"]:
            described, _, content = taken.partition(b"\r\n\r\n")[2].partition(b"\r\n--")
            content = content.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
            name, kept = json.loads(described)["name"], content if len(content) < PIECE else b""
            uploaded[name] = Uploaded(len(content), crc32c(content), kept)
            self._answer(200, json.dumps(self.server.store.metadata(name)).encode())
            return
        name, host = json.loads(taken)["name"], self.headers["Host"]
        uploaded.pop(f"upload {name}", None)
        self._answer(200, b"{}", Location=f"http://{host}/part?name={urllib.parse.quote(name)}")

    def do_PUT(self) -> None:
        """Accept a part of an upload."""
        uploaded = self.server.store.uploaded
        name = urllib.parse.parse_qs(self.path.partition("?")[2])["name"][0]
        object = uploaded.pop(f"upload {name}", Uploaded())
        for piece in self._pieces():
            size, crc = object.size + len(piece), extend(object.crc, piece)
            object = Uploaded(size, crc, object.content + bytes(piece) if size < PIECE else b"")
        if re.fullmatch(r"bytes .*/\d+", self.headers["Content-Range"]):
            uploaded[name] = object
            self._answer(200, json.dumps(self.server.store.metadata(name)).encode())
        else:
            uploaded[f"upload {name}"] = object
            self._answer(308, b"", Range=f"bytes=0-{object.size - 1}")

    def _list(self, query: dict[str, str]) -> None:
        """Answer with a page of up to 1,000 objects, as the JSON API does."""
        store, prefix = self.server.store, query.get("prefix", "")
        names, prefixes = [], set()
        for name in store.names(prefix):
            rest = name.removeprefix(prefix)
            if query.get("delimiter") and "/" in rest:
                prefixes.add(prefix + rest.partition("/")[0] + "/")
            else:
                names.append(name)
        first = int(query.get("pageToken", 0))
        last = first + min(1000, int(query.get("maxResults", 1000)))
        page: dict[str, Any] = {"items": list(map(store.metadata, names[first:last]))}
        if prefixes:
            page["prefixes"] = sorted(prefixes)
        if last < len(names):
            page["nextPageToken"] = str(last)
        self._answer(200, json.dumps(page).encode())

    def _send(self, name: str, size: int, start: float) -> None:
        """Send an object or the requested range at the speed of a connection."""
        store = self.server.store
        store.requests += 1
        fault = store.faults.popleft() if store.faults else ""
        if fault == "503":
            self._answer(503, b"{}")
            return
        first, last = 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and fault != "whole":
            first, last = int(asked[1]), min(size, int(asked[2] or size - 1) + 1)
        if first >= last and asked:
            self._answer(416, b"{}")
            return
        if fault == "short":
            last -= (last - first) // 2
        self.send_response(206 if asked and fault != "whole" else 200)
        self.send_header("Content-Length", str(last - first))
        self.send_header("Content-Range", f"bytes {first}-{last - 1}/{size}")
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        if fault == "cut":
            last -= (last - first) // 2
            self.close_connection = True
        if name in store.uploaded:
            self.wfile.write(store.uploaded[name].content[first:last])
            return
        assert store.folder
        with (store.folder / name).open("rb", buffering=0) as stream:
            for place in range(first, last, PIECE):
                count = min(PIECE, last - place)
                self.connection.sendfile(stream, place, count)
                due = start + store.latency + (place + count - first) / store.speed
                time.sleep(max(0, due - time.monotonic()))

    def _pieces(self) -> Iterator[memoryview]:
        """Yield the body of the request at the speed of a connection, in one buffer."""
        start, size = time.monotonic(), int(self.headers.get("Content-Length", 0))
        store, buffer = self.server.store, memoryview(bytearray(PIECE))
        time.sleep(store.latency)
        for place in range(0, size, PIECE):
            piece = buffer[: min(PIECE, size - place)]
            if self.rfile.readinto(piece) < len(piece):
                raise ConnectionError("the client left")
            yield piece
            due = start + store.latency + (place + len(piece)) / store.speed
            time.sleep(max(0, due - time.monotonic()))

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


def _serve(store: Store, address: Connection) -> None:
    started = Server(store)
    address.send(started.server_port)
    started.serve_forever()


@contextmanager
def running(store: Store) -> Iterator[str]:
    """Run the stand-in in its own process, and point clients in this process to it.

    Yields:
        Its address, such as http://localhost:9023.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(store, theirs), daemon=True)
    process.start()
    address = f"http://localhost:{ours.recv()}"
    os.environ["STORAGE_EMULATOR_HOST"] = address
    os.environ.setdefault("GOOGLE_CLOUD_PROJECT", "project")
    # Otherwise each request of gcsfs looks for credentials for a service that does not exist here.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    try:
        yield address
    finally:
        process.terminate()
        process.join()
