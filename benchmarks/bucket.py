"""Time of writing to a bucket, against what its connections can carry.

    python -m benchmarks.bucket --speed 50 --latency 30 --layers 14 --megabytes 1500

A stand-in of Cloud Storage in a process of its own gives each connection a speed and each request a
latency. A fake extractor makes blocks of all layers at a given speed and hands them to the writers
of the job. The figure is the time over max(time of the extractor, bytes / (connections x speed)),
where each layer has one connection.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection

import google_crc32c
import numpy as np

from activation_dataset.checksum import to_text
from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.statistics import LayerStatistics
from transforms.extract_activations import LayerBlock
from transforms.output_folder import OutputFolder
from transforms.write_layer import _WriteLayer

HIDDEN = 896
VECTORS = 4096
PIECE = 1 << 18


class StandIn(BaseHTTPRequestHandler):
    """The requests of the JSON API that writing needs; keeps size and CRC32C of large objects."""

    protocol_version = "HTTP/1.1"
    speed, latency = 50e6, 0.03
    objects: dict[str, tuple[int, int, bytes]] = {}  # noqa: RUF012

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Return a listing, the metadata or, with `alt=media`, the content of an object."""
        name = urllib.parse.unquote(self.path.partition("/o/")[2].partition("?")[0])
        time.sleep(self.latency)
        if not name:  # The bucket itself, or a listing.
            query = urllib.parse.parse_qs(self.path.partition("?")[2])
            start = query.get("prefix", [""])[0]
            found = [self._described(each) for each in self.objects if each.startswith(start)]
            self._answer(200, json.dumps({"items": found}).encode())
        elif name not in self.objects:
            self._answer(404, b"{}")
        elif "alt=media" in self.path:
            self._answer(200, self.objects[name][2])
        else:
            self._answer(200, self._metadata(name))

    def do_POST(self) -> None:
        """Take an upload of one request, or begin one in parts."""
        taken, query = self._take(), urllib.parse.parse_qs(self.path.partition("?")[2])
        if query["uploadType"] == ["multipart"]:
            described, _, content = taken.partition(b"\r\n\r\n")[2].partition(b"\r\n--")
            content = content.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
            name = json.loads(described)["name"]
            kept = content if len(content) < PIECE else b""
            StandIn.objects[name] = len(content), google_crc32c.value(content), kept
            self._answer(200, self._metadata(name))
            return
        name = json.loads(taken)["name"]
        host = self.headers["Host"]
        StandIn.objects.pop(f"upload {name}", None)
        self._answer(200, b"{}", Location=f"http://{host}/part?name={urllib.parse.quote(name)}")

    def do_PUT(self) -> None:
        """Take a part of an upload."""
        name = urllib.parse.parse_qs(self.path.partition("?")[2])["name"][0]
        size, crc, kept = StandIn.objects.pop(f"upload {name}", (0, 0, b""))
        part = self._take()
        size, crc = size + len(part), google_crc32c.extend(crc, part)
        kept = (kept + part) if size < PIECE else b""
        if re.fullmatch(r"bytes .*/\d+", self.headers["Content-Range"]):
            StandIn.objects[name] = size, crc, kept
            self._answer(200, self._metadata(name))
        else:
            StandIn.objects[f"upload {name}"] = size, crc, kept
            self._answer(308, b"", Range=f"bytes=0-{size - 1}")

    def _take(self) -> bytes:
        start, rest, pieces = time.monotonic(), int(self.headers.get("Content-Length", 0)), []
        time.sleep(self.latency)
        taken = 0
        while rest:
            pieces.append(piece := self.rfile.read(min(rest, PIECE)))
            rest, taken = rest - len(piece), taken + len(piece)
            due = start + self.latency + taken / self.speed
            time.sleep(max(0, due - time.monotonic()))
        return b"".join(pieces)

    def _metadata(self, name: str) -> bytes:
        return json.dumps(self._described(name)).encode()

    def _described(self, name: str) -> dict[str, str]:
        size, crc, _ = self.objects[name]
        found = {"name": name, "bucket": "bucket", "size": str(size), "crc32c": to_text(crc)}
        return found | {"generation": "1", "metageneration": "1"}

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


def serve(speed: float, latency: float, address: Connection) -> None:
    """Serve until the process is ended; send the port first."""
    StandIn.speed, StandIn.latency = speed, latency
    server = ThreadingHTTPServer(("localhost", 0), StandIn)
    address.send(server.server_port)
    server.serve_forever()


def write(layers: int, total: float, made: float) -> tuple[float, int]:
    """Return the seconds and the bytes of a shard that an extractor makes at some bytes/s."""
    kind = RecordKind("none", "float32", HIDDEN)
    ids = np.arange(VECTORS, dtype=np.int32)
    vectors = np.zeros((VECTORS, HIDDEN), np.float32)
    vectors[:] = np.arange(HIDDEN)
    statistics = LayerStatistics.of_vectors(vectors)
    folder = OutputFolder.claim("gs://bucket/out")
    writers = {layer: _WriteLayer(folder, layer, kind) for layer in range(layers)}
    for writer in writers.values():
        writer.setup()
        writer.start_bundle()
    steps = max(1, round(total / layers / vectors.nbytes))
    start, given = time.monotonic(), 0
    for step in range(steps):
        frame = frame_record(kind.sample(prompt_of(step, ids)), kind)
        for layer, writer in writers.items():
            given += vectors.nbytes
            time.sleep(max(0, start + given / made - time.monotonic()))
            last = step == steps - 1
            block = LayerBlock(0, 1, layer, (frame,), vectors, statistics, "fake", last)
            writer.process(block)
    for writer in writers.values():
        list(writer.finish_bundle())
        writer.teardown()
    return time.monotonic() - start, given


def prompt_of(number: int, ids: np.ndarray) -> Prompt:
    """Return a prompt of these tokens."""
    return Prompt(f"sample-{number:06}", "", ids, np.full((len(ids), 4), -1, np.int16))


def main() -> None:
    """Measure and print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, default=50, help="MB/s of a connection")
    parser.add_argument("--latency", type=float, default=30, help="ms of a request")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--megabytes", type=float, default=1500)
    parser.add_argument("--extractor", type=float, default=2000, help="MB/s of the extractor")
    flags = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(flags.speed * 1e6, flags.latency / 1e3, theirs), daemon=True
    )
    server.start()
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://localhost:{ours.recv()}"
    os.environ.setdefault("GOOGLE_CLOUD_PROJECT", "project")
    seconds, size = write(flags.layers, flags.megabytes * 1e6, flags.extractor * 1e6)
    server.terminate()
    bound = max(
        size / (flags.extractor * 1e6),
        size / (flags.layers * flags.speed * 1e6),
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{size / 1e6:,.0f} MB in {seconds:.2f} s, {seconds / bound:.2f} times the bound of "
        f"{bound:.2f} s; peak memory {peak:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
