"""Flipped bits and cut files, which `verify` must report by file name, without a traceback.

    python -m reliability.damage --flips 2000 --cuts 500 --seed 1

Each round flips one bit in every kind of byte (length of a record, CRC of the length, data, CRC of
the data, metadata), so small regions are hit as often as large ones. The reader must refuse every
file that `verify` reports.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

from activation_dataset.__main__ import main as command
from activation_dataset.damage import DatasetError
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, CorruptRecordError
from reliability.job import Job

LENGTH_BYTES = 8

Place = tuple[Path, range]
"""A file and a range of its bytes."""


def places_of(dataset: Path) -> dict[str, list[Place]]:
    """Return the places where a bit can be flipped, by kind."""
    metadata = dataset / "metadata.json"
    places: dict[str, list[Place]] = {"metadata": [(metadata, range(metadata.stat().st_size))]}
    for path in sorted(dataset.rglob("*.tfrecord")):
        file = "prompts" if path.parent.name == "prompts" else "layer"
        for start, end in pairwise(_record_offsets(path.read_bytes())):
            length, data, footer = start + LENGTH_BYTES, start + HEADER_BYTES, end - FOOTER_BYTES
            for kind, span in {
                "length": range(start, length),
                "CRC of the length": range(length, data),
                "data": range(data, footer),
                "CRC of the data": range(footer, end),
            }.items():
                places.setdefault(f"{file}: {kind}", []).append((path, span))
    return places


def _record_offsets(content: bytes) -> list[int]:
    """Return the offsets of the records of a TFRecord file, and its size."""
    offsets = [0]
    while (start := offsets[-1]) < len(content):
        length = int.from_bytes(content[start : start + LENGTH_BYTES], "little")
        offsets.append(start + HEADER_BYTES + length + FOOTER_BYTES)
    return offsets


def reported(dataset: Path) -> list[str]:
    """Return the lines that `python -m activation_dataset verify` prints about problems."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = command(["verify", str(dataset)])
    lines = out.getvalue().splitlines()
    assert status == (0 if lines[0].startswith("sound: ") else 1), (status, lines)
    return lines if status else []


def is_refused(dataset: Path, file: str) -> bool:
    """Return True if a layer file, or the dataset, cannot be read to its end."""
    try:
        opened = ActivationDataset(dataset)
        for site in opened.sites:
            for shard in opened.metadata.shards:
                if shard.files[site].path == file:
                    for record in opened.records(site, shard.shard):
                        _ = record.activation
    except (CorruptRecordError, DatasetError):
        return True
    return False


def check(dataset: Path, path: Path, changed: bytes, what: str) -> None:
    """Replace a file's content temporarily; `verify` must name it, and the reader refuse it."""
    name = path.relative_to(dataset).as_posix()
    before = path.read_bytes()
    path.write_bytes(changed)
    try:
        lines = reported(dataset)
        assert any(line.startswith(f"{name}: ") for line in lines), f"{what} in {name}: {lines}"
        assert name.startswith("prompts/") or is_refused(dataset, name), f"{what} in {name} is read"
    finally:
        path.write_bytes(before)


def flip_bits(dataset: Path, flips: int, seed: int) -> Counter[str]:
    """Flip one bit at a time and return the number of reported flips of each kind."""
    generator = random.Random(seed)
    caught: Counter[str] = Counter()
    while caught.total() < flips:
        for kind, places in places_of(dataset).items():
            path, span = generator.choice(places)
            byte, bit = generator.choice(span), generator.randrange(8)
            changed = bytearray(path.read_bytes())
            changed[byte] ^= 1 << bit
            check(dataset, path, bytes(changed), f"bit {bit} of byte {byte} ({kind})")
            caught[kind] += 1
    return caught


def cut_files(dataset: Path, cuts: int, seed: int) -> int:
    """Cut one file at a time at a random place and return the number of reported cuts."""
    generator = random.Random(seed)
    files = [*sorted(dataset.rglob("*.tfrecord")), dataset / "metadata.json"]
    for _ in range(cuts):
        path = generator.choice(files)
        whole = path.read_bytes()
        length = generator.randrange(len(whole))
        check(dataset, path, whole[:length], f"cut at {length} of {len(whole)}")
    return cuts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--cuts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        dataset = Path(name) / "out"
        flags = ("--layers_to_extract", "0-2", "--samples_per_shard", "2")
        Job(Path(name) / "compiled", flags=flags).complete(dataset)
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
