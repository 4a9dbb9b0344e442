"""Flipped bits and cut files: verify must report each, with the file's name, and never a trace.

    python -m reliability.damage --flips 2000 --cuts 500 --seed 1

A flip is drawn by where it lies (a record's length, the CRC of it, data, the CRC of that, the
metadata), so that small places are hit as often as large ones. The reader is put
to the same test: it must refuse what verify reports.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from activation_dataset.__main__ import main as command
from activation_dataset.reading.reader import ActivationDataset, DatasetError
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, CorruptRecordError
from reliability.job import Job

LENGTH_BYTES = 8

Place = tuple[str, Path, range]
"""What it is, the file, and the bytes that it takes."""


def places_of(dataset: Path) -> list[Place]:
    """Every place of a dataset in which a bit can be flipped."""
    places: list[Place] = []
    for path in sorted(dataset.rglob("*.tfrecord")):
        kind = "prompts" if path.parent.name == "prompts" else "layer"
        for start, end in pairwise(_record_offsets(path.read_bytes())):
            data, footer = start + HEADER_BYTES, end - FOOTER_BYTES
            places += [
                (f"{kind}: length", path, range(start, start + LENGTH_BYTES)),
                (f"{kind}: CRC of the length", path, range(start + LENGTH_BYTES, data)),
                (f"{kind}: data", path, range(data, footer)),
                (f"{kind}: CRC of the data", path, range(footer, end)),
            ]
    metadata = dataset / "metadata.json"
    return [*places, ("metadata", metadata, range(metadata.stat().st_size))]


def _record_offsets(content: bytes) -> list[int]:
    """Where each record of a TFRecord file starts, and the end."""
    offsets = [0]
    while (start := offsets[-1]) < len(content):
        length = int.from_bytes(content[start : start + LENGTH_BYTES], "little")
        offsets.append(start + HEADER_BYTES + length + FOOTER_BYTES)
    return offsets


@contextmanager
def content(path: Path, changed: bytes) -> Iterator[None]:
    """A file with other content for a while."""
    before = path.read_bytes()
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(before)


def reported(dataset: Path) -> list[str]:
    """What ``python -m activation_dataset verify`` prints; it must exit with 1 if anything.

    Raises:
      AssertionError: if the exit status does not fit.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = command(["verify", str(dataset)])
    lines = out.getvalue().splitlines()
    assert status == (0 if lines[0].startswith("sound: ") else 1), (status, lines)
    return lines if status else []


def is_refused(dataset: Path, file: str) -> bool:
    """Whether reading a file of a dataset to its end fails as it should."""
    try:
        opened = ActivationDataset(dataset)
        for layer in opened.layers:
            for batch in opened.metadata.shards:
                if batch.files[layer].path == file:
                    for record in opened.records(layer, batch.shard):
                        _ = record.activation
    except (CorruptRecordError, DatasetError):
        return True
    return False


def check_damage(dataset: Path, file: Path, what: str) -> None:
    """
    Raises:
      AssertionError: if a damaged file is not reported by its name, or is read as if it were whole.
    """
    name = file.relative_to(dataset).as_posix()
    lines = reported(dataset)
    assert any(line.startswith(name) for line in lines), f"{what} in {name}: {lines}"
    if not name.startswith("prompts/"):
        assert is_refused(dataset, name), f"{what} in {name} was read"


def flip_bits(dataset: Path, flips: int, seed: int) -> Counter[str]:
    """Flips one bit at a time; gives how many of each kind of place were reported."""
    generator = random.Random(seed)
    by_kind: dict[str, list[Place]] = {}
    for place in places_of(dataset):
        by_kind.setdefault(place[0], []).append(place)
    caught: Counter[str] = Counter()
    while caught.total() < flips:
        for kind, places in by_kind.items():
            _, path, span = generator.choice(places)
            byte, bit = generator.choice(span), generator.randrange(8)
            changed = bytearray(path.read_bytes())
            changed[byte] ^= 1 << bit
            with content(path, bytes(changed)):
                check_damage(dataset, path, f"bit {bit} of byte {byte} ({kind})")
            caught[kind] += 1
    return caught


def cut_files(dataset: Path, cuts: int, seed: int) -> int:
    """Cuts one file at a time at a random place; gives how many cuts were reported."""
    generator = random.Random(seed)
    files = [*sorted(dataset.rglob("*.tfrecord")), dataset / "metadata.json"]
    for _ in range(cuts):
        path = generator.choice(files)
        whole = path.read_bytes()
        length = generator.randrange(len(whole))
        with content(path, whole[:length]):
            check_damage(dataset, path, f"cut at {length} of {len(whole)}")
    return cuts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        folder = Path(name)
        job = Job(
            folder / "compiled", flags=("--layers_to_extract", "0-2", "--samples_per_shard", "2")
        )
        dataset = folder / "out"
        job.complete(dataset)
        assert not reported(dataset)
        started = time.monotonic()
        caught = flip_bits(dataset, arguments.flips, arguments.seed)
        cuts = cut_files(dataset, arguments.cuts, arguments.seed)
        assert not reported(dataset)
    for kind, count in caught.items():
        print(f"{count:6} flips caught in {kind}")
    print(f"{caught.total()} flips and {cuts} cuts, all caught, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
