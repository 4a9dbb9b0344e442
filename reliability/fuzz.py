"""Fuzzing what reads bytes and words from outside: no crash, no hang, no accepted nonsense.

    python -m reliability.fuzz tasks --inputs 200000 --seed 1
    python -m reliability.fuzz tasks --coverage --seconds 600 --seed 1     # needs atheris

Without --coverage, inputs are valid ones that are changed at random, several times over. With it,
atheris (pip install atheris) keeps those that reach new code, and goes on from them. Either way
each answer is checked: a reader may accept what it then describes rightly, or refuse with the one
error that it documents.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from activation_dataset import native
from activation_dataset.checksum import crc32c
from activation_dataset.example import (
    ACTIVATION,
    ExampleError,
    decode_example,
    encode_prefix,
    encode_suffix,
)
from activation_dataset.fields import FieldError
from activation_dataset.format import Sample
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import PAYLOAD, Prompt, decode_prompt, encode_prompt
from activation_dataset.tfrecord import (
    FOOTER_BYTES,
    HEADER_BYTES,
    CorruptRecordError,
    frame_footer,
    frame_header,
    read_records,
)
from activation_dataset.verifying.canonical import NotCanonicalError, parse_records, read_blocks
from corpus.parse import parse_tasks
from corpus.task import MAX_GRID_SIDE, REASONS, Document, Grid, Task
from qwen.checkpoint import CheckpointError, read_safetensors_header

HANGS_AFTER = 20
"""Seconds that one input may take."""


@dataclass(frozen=True)
class Target:
    """Something to be fuzzed.

    Attributes:
      seeds: valid inputs.
      check: gives one input to the reader; says "accepted" or how it was refused. What it raises
        is a finding.
      words: what inputs are made of, to be put in now and then.
    """

    seeds: Sequence[bytes]
    check: Callable[[bytes], str]
    words: Sequence[bytes] = ()


# Tasks

TASK = {"train": [{"input": [[1, 2], [3, 4]], "output": [[5]]}], "test": [{"input": [[6]]}]}
TASK_FILES = [
    json.dumps(TASK),
    json.dumps({"007": TASK, "008": TASK}),
    json.dumps([TASK | {"id": "a"}, {"id": "b", "text": "words"}]),
    json.dumps(TASK | {"id": 7}) + "\n" + json.dumps({"text": "x"}) + "\n",
    json.dumps([{"input": [[index]], "output": [[0, 9]]} for index in range(9)]),
    json.dumps({"id": "c", "messages": [{"role": "user", "content": "Why?"}]}),
    json.dumps({"007": [[[1]], [[2]]]}),
]


def check_tasks(data: bytes) -> str:
    name = ("a.json", "sub/a.jsonl", "a.json.gz")[len(data) % 3]
    answers = Counter[str]()
    seen = set[str]()
    for item in parse_tasks(io.BytesIO(data), name):
        if isinstance(item, Task):
            assert item.source == name
            assert item.train
            assert item.test
            for pair in (*item.train, *item.test):
                check_grid(pair.input)
                assert pair.output is not None or pair in item.test
                if pair.output is not None:
                    check_grid(pair.output)
            check_ids(seen, [item.sample_id(index) for index in range(len(item.test))])
            answers["task"] += 1
        elif isinstance(item, Document):
            text = item.text
            assert (text is None) == bool(item.messages)
            assert text is None or text.strip()
            check_ids(seen, [item.sample_id])
            answers["document"] += 1
        else:
            assert item.reason in REASONS
            assert item.detail.startswith(name)
            answers["rejected"] += 1
    assert answers, "nothing was said of a file"
    return "accepted" if answers.keys() - {"rejected"} else "rejected"


def check_grid(grid: Grid) -> None:
    assert 1 <= len(grid) <= MAX_GRID_SIDE
    assert 1 <= len(grid[0]) <= MAX_GRID_SIDE
    assert {len(row) for row in grid} == {len(grid[0])}
    assert all(type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row)


def check_ids(seen: set[str], ids: Sequence[str]) -> None:
    for each in ids:
        assert each not in seen, f"{each!r} comes twice"
        assert each.isprintable()
        each.encode()
        seen.add(each)


# Records

SAMPLE = Sample("training/é.json#007/0", "007", np.array([5, 0, 151_935], np.int32), 3)


def example(sample: Sample = SAMPLE, payload: bytes = bytes(range(24))) -> bytes:
    suffix = encode_suffix(sample, (3, 2))
    return encode_prefix(len(payload), len(suffix)) + payload + suffix


def prompt() -> bytes:
    cells = np.array([[-1] * 4, [0, 0, 1, 2], [-1, 1, 0, 0]], np.int16)
    return encode_prompt(Prompt(SAMPLE.sample_id, SAMPLE.task_id, SAMPLE.token_ids, cells))


def framed(*records: bytes) -> bytes:
    return b"".join(frame_header(len(r)) + r + frame_footer(crc32c(r)) for r in records)


def check_example(data: bytes) -> str:
    """Decodes a record; what is accepted must mean the same when it is encoded again."""
    answer = "refused"
    with contextlib.suppress(ExampleError):
        found = decode_example(data)
        payload = bytes(found.activation)
        suffix = encode_suffix(found.sample, found.shape)
        again = decode_example(encode_prefix(len(payload), len(suffix)) + payload + suffix)
        assert again.sample == found.sample
        assert (again.shape, bytes(again.activation)) == (found.shape, payload)
        answer = "accepted"
    with contextlib.suppress(ExampleError):
        one = decode_prompt(data)
        other = decode_prompt(encode_prompt(one))
        assert other.sample == one.sample
        assert np.array_equal(other.cells, one.cells)
        answer = "accepted"
    for payload_name, width in ((ACTIVATION, 2), (PAYLOAD, 4)):
        check_canonical(data, payload_name, width)
    return answer


def check_canonical(data: bytes, payload_name: bytes, width: int) -> None:
    """What verifying takes for a record as a writer makes it must be what a writer makes.

    The library and numpy must take the same.
    """
    accepted = []
    for library in (native.library, None):
        with patch.object(native, "library", library):
            (block,) = read_blocks(io.BytesIO(framed(data)), 1 << 16)
            try:
                records = parse_records(block, payload_name, width, True, None)
            except NotCanonicalError:
                accepted.append(False)
                continue
        (sample,) = records.samples.samples()
        payload = block.data[records.payload_starts[0] : records.payload_ends[0]].tobytes()
        suffix = encode_suffix(sample, (sample.num_tokens, width))
        assert encode_prefix(len(payload), len(suffix), payload_name) + payload + suffix == data
        accepted.append(True)
    assert accepted[0] == accepted[1]


def check_records(data: bytes) -> str:
    """Reads a file of records; what is accepted must be the file's very bytes."""
    records = None
    with contextlib.suppress(CorruptRecordError):
        records = [bytes(record) for record in read_records(io.BytesIO(data), "file")]
        assert framed(*records) == data
    for library in (native.library, None):
        found = None
        with patch.object(native, "library", library), contextlib.suppress(NotCanonicalError):
            found = [
                block.data[start + HEADER_BYTES : end - FOOTER_BYTES].tobytes()
                for block in read_blocks(io.BytesIO(data), 20)
                for start, end in zip(block.starts, block.ends, strict=True)
            ]
        assert found == records
    return "refused" if records is None else "accepted"


# Safetensors

TENSORS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    "c": {"dtype": "BF16", "shape": [0, 5], "data_offsets": [26, 26]},
}


def safetensors_file(header: object, size: int) -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(size)


def check_safetensors(data: bytes) -> str:
    """Reads a header; what is accepted must be accepted by the safetensors library too."""
    path = _scratch_file()
    path.write_bytes(data)
    try:
        entries = read_safetensors_header(path)
    except CheckpointError:
        return "refused"
    for entry in entries.values():
        assert 8 <= entry.start <= entry.end <= len(data)
        assert entry.end - entry.start == np.prod(entry.shape) * entry.dtype.itemsize
    assert sum(entry.end - entry.start for entry in entries.values()) <= len(data) - 8
    theirs = {name for name, _ in _deserialize(data)}
    assert theirs == entries.keys(), (theirs, entries)
    return "accepted"


def _deserialize(data: bytes) -> Iterator[tuple[str, object]]:
    from safetensors import deserialize

    yield from deserialize(data)


def _scratch_file() -> Path:
    folder = Path("/dev/shm")
    parent = folder if folder.is_dir() else Path(tempfile.gettempdir())
    return parent / f"fuzz-{os.getpid()}.safetensors"


# Metadata


def metadata() -> bytes:
    """The metadata of a small dataset."""
    from tests.activation_dataset.synthetic import write_dataset

    with tempfile.TemporaryDirectory() as folder:
        return write_dataset(Path(folder), [[3, 4]], layers=(10,), hidden=2).to_json().encode()


def check_metadata(data: bytes) -> str:
    try:
        found = Metadata.from_json(data)
    except FieldError:
        return "refused"
    assert Metadata.from_json(found.to_json()) == found
    return "accepted"


# Flags

FLAGS = [
    "--model_path random:tiny --tasks_file a.json",
    "--model_path random:tiny --tasks_file a.json b.json --layers_to_extract 10-23 all 3,4",
    "--model_path m --tasks_file t --pooling mean --storage_dtype bfloat16 --batch_size 8",
    "--model_path m --tasks_file t --mesh_shape 4,2 --accelerator tpu-v5e-8 --max_length=5",
    "--model_path m --tasks_file t --gcs_bucket b/c --upload_to_cloud True --runner=DataflowRunner",
    "--model_path m --tasks_file t --overwrite --allow_nonfinite=false --max_rejected 0",
    "--model_path m --tasks_file t --augment 3 --augment_seed 7 --augment_keep_background",
    "--model_path m --tasks_file t --direct_num_workers 2 --direct_running_mode multi_processing",
]


def check_flags(data: bytes) -> str:
    """Parses words; what is accepted must be a configuration that makes sense."""
    from beam_pipeline.accelerators import AcceleratorError
    from beam_pipeline.config import ConfigError
    from beam_pipeline.options import parse_flags

    words = data.decode("utf-8", "replace").split(" ")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            config, _ = parse_flags(words)
    except (ConfigError, AcceleratorError):
        return "refused"
    except SystemExit as left:
        return "helped" if left.code == 0 else "failed"
    numbers = (config.batch_size, config.samples_per_shard, config.augment, config.max_length or 1)
    assert all(type(number) is int and number >= 1 for number in numbers), config
    assert config.model_path is not None
    assert config.tasks_file
    assert config.output_dir
    assert config.layers is None or all(0 <= layer <= 9999 for layer in config.layers)
    assert config.pooling in ("last", "mean", "none")
    return "accepted"


JSON_WORDS = [
    *(b'"train"', b'"test"', b'"input"', b'"output"', b'"id"', b'"text"', b'"messages"', b"null"),
    *(b"[[", b"]]", b"{}", b"[]", b"NaN", b"1e999", b"-1", b"true", b"\\ud800", b"\n{", b"\x00"),
]


def targets() -> dict[str, Callable[[], Target]]:
    """Name to what makes the target."""
    encoded = [text.encode() for text in TASK_FILES]
    return {
        "tasks": lambda: Target(encoded, check_tasks, JSON_WORDS),
        "examples": lambda: Target([example(), prompt()], check_example),
        "records": lambda: Target([framed(b"one", b"", b"three"), framed()], check_records),
        "safetensors": lambda: Target(
            [safetensors_file(TENSORS, 26), safetensors_file({}, 0)],
            check_safetensors,
            [*JSON_WORDS, b'"dtype"', b'"shape"', b'"F32"', b'"BF16"', b"18446744073709551616"],
        ),
        "metadata": lambda: Target([metadata()], check_metadata, JSON_WORDS),
        "flags": lambda: Target(
            [line.encode() for line in FLAGS],
            check_flags,
            [b" --", b"=", b" -h", b"--help", b"gs://", b"=true", b" 0", b" 99999999999999999999"],
        ),
    }


def mutate(generator: random.Random, data: bytes, target: Target) -> bytes:
    """An input, changed in one to eight places."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 8)):
        place = generator.randint(0, len(changed))
        end = min(len(changed), place + generator.randint(0, 12))
        match generator.randrange(7):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << generator.randrange(8)
            case 1:
                changed[place:place] = generator.randbytes(generator.randint(1, 4))
            case 2:
                del changed[place:end]
            case 3:
                changed[place:place] = changed[place:end] * generator.randint(1, 3)
            case 4:
                changed[place:end] = generator.choice(target.words or (b"\xff", b"\x00"))
            case 5:
                other = generator.choice(target.seeds)
                start = generator.randint(0, len(other))
                changed[place:end] = other[start : start + generator.randint(1, 40)]
            case 6:
                del changed[place:]
    return bytes(changed)


class Hang(Exception):
    """An input took too long."""


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(target: Target, inputs: int, seed: int) -> Counter[str]:
    """Gives a reader so many inputs; gives how many it accepted and refused.

    Raises:
      Exception: what an input made the reader raise; a note on it holds the input.
    """
    generator = random.Random(seed)
    pool = list(target.seeds)
    answers: Counter[str] = Counter(target.check(seed) for seed in target.seeds)
    assert set(answers) <= {"accepted", "rejected"}, "a seed was refused"
    while answers.total() < inputs:
        data = mutate(generator, generator.choice(pool), target)
        try:
            with no_longer_than(HANGS_AFTER):
                answer = target.check(data)
        except BaseException as error:
            error.add_note(f"the input: {data!r}")
            raise
        assert answer != "failed", data
        answers[answer] += 1
        # What was accepted is worth changing further; the pool stays small.
        if answer == "accepted" and len(data) < 4000:
            pool.append(data) if len(pool) < 300 else pool.__setitem__(
                generator.randrange(len(target.seeds), 300), data
            )
    return answers


def fuzz_by_coverage(name: str, seconds: int, seed: int) -> None:
    """Runs atheris, which ends this process; with another status than 0 if it found anything."""
    import atheris

    atheris.instrument_all()
    target = targets()[name]()
    with tempfile.TemporaryDirectory() as folder:
        for number, each in enumerate(target.seeds):
            (Path(folder) / str(number)).write_bytes(each)
        arguments = [
            *(f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={HANGS_AFTER}"),
            *("-max_len=4096", "-print_final_stats=1", "-rss_limit_mb=4096"),
        ]
        if target.words:
            words = Path(folder) / "words"
            lines = (
                '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in target.words
            )
            words.write_text("\n".join(lines))
            arguments.append(f"-dict={words}")
        atheris.Setup([sys.argv[0], *arguments, folder], lambda data: target.check(data) and None)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=[*targets(), "all"])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--coverage", action="store_true", help="be guided by coverage (atheris)")
    parser.add_argument("--seconds", type=int, default=60, help="how long, with --coverage")
    arguments = parser.parse_args()
    if arguments.coverage:
        fuzz_by_coverage(arguments.target, arguments.seconds, arguments.seed)
    for name, make in targets().items():
        if arguments.target in (name, "all"):
            started = time.monotonic()
            answers = fuzz(make(), arguments.inputs, arguments.seed)
            seconds = time.monotonic() - started
            print(f"{name}: {answers.total()} inputs in {seconds:.0f} s, {dict(answers)}")


if __name__ == "__main__":
    main()
