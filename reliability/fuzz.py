"""Fuzzing of all readers of untrusted bytes: no crash, no hang, no invalid input accepted.

    python -m reliability.fuzz tasks --inputs 200000 --seed 1

Inputs are random mutations of valid inputs and of earlier accepted inputs. A reader must either
accept an input and describe it correctly, or refuse it with the error that it documents.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from activation_dataset.canonical_json import sealed_text
from activation_dataset.checksum import crc32c
from activation_dataset.example import ExampleError, decode_example, encode_prefix, encode_suffix
from activation_dataset.fields import FieldError
from activation_dataset.format import Sample
from activation_dataset.manifest import LayerManifest, sample_order
from activation_dataset.metadata import Metadata
from activation_dataset.prompts import Prompt, decode_prompt, encode_prompt
from activation_dataset.tfrecord import CorruptRecordError, frame_footer, frame_header, read_records
from corpus.parse import parse_tasks
from corpus.task import MAX_GRID_SIDE, NOTICE_REASONS, REASONS, Document, Grid, Notice, Task
from reliability import blocks

HANGS_AFTER = 20
"""Maximum seconds for one input."""


@dataclass(frozen=True)
class Target:
    """Reader to fuzz.

    Attributes:
        seeds: valid inputs.
        check: function that gives an input to the reader and returns "accepted" or the kind of
            refusal. An error that it raises is a finding.
        words: parts of inputs to insert occasionally.
    """

    seeds: Sequence[bytes]
    check: Callable[[bytes], str]
    words: Sequence[bytes] = ()


# Tasks

TASK = {"train": [{"input": [[1, 2], [3, 4]], "output": [[5]]}], "test": [{"input": [[6]]}]}
TASK_FILES = [
    json.dumps(TASK),
    json.dumps({"007": TASK, "008": TASK}),
    json.dumps({"train": {"007": TASK}, "eval": [TASK, {"name": "a", "data": TASK}]}),
    json.dumps([TASK | {"id": "a"}, {"id": "b", "text": "words"}]),
    json.dumps(TASK | {"id": 7}) + "\n" + json.dumps({"text": "x"}) + "\n",
    json.dumps([{"input": [[index]], "output": [[0, 9]]} for index in range(9)]),
    json.dumps({"id": "c", "messages": [{"role": "user", "content": "Why?"}]}),
    json.dumps({"conversations": [{"from": "human", "value": "Why?"}], "tools": '[{"name": "f"}]'}),
    json.dumps({"instruction": "Why?", "input": "", "output": "So.", "history": [["a", "b"]]}),
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
        elif isinstance(item, Notice):
            assert item.reason in NOTICE_REASONS
        else:
            assert item.reason in REASONS
            assert item.detail.startswith(name)
            answers["rejected"] += 1
    assert answers, "the parser reported nothing about a file"
    return "accepted" if answers.keys() - {"rejected"} else "rejected"


def check_grid(grid: Grid) -> None:
    assert 1 <= len(grid) <= MAX_GRID_SIDE
    assert 1 <= len(grid[0]) <= MAX_GRID_SIDE
    assert {len(row) for row in grid} == {len(grid[0])}
    assert all(type(cell) is int and 0 <= cell <= 9 for row in grid for cell in row)


def check_ids(seen: set[str], ids: Sequence[str]) -> None:
    for each in ids:
        assert each not in seen, f"{each!r} occurs twice"
        assert each.isprintable()
        each.encode()
        seen.add(each)


# Records

SAMPLE = Sample("training/é.json#007/0", "007", np.array([5, 0, 151_935], np.int32), 3)
TRUNCATED = replace(SAMPLE, truncated_tokens=300)


def _field(name: str, number: int, kind: str, label: str = "OPTIONAL") -> str:
    kind = f'type_name: "{kind}"' if kind.startswith(".") else f"type: TYPE_{kind}"
    return f'field {{ name: "{name}" number: {number} label: LABEL_{label} {kind} }}'


# tensorflow/core/example/{example,feature}.proto, without lists of floats.
_PROTO = f"""
name: "fuzz.proto" package: "fuzz" syntax: "proto3"
message_type {{ name: "BytesList" {_field("value", 1, "BYTES", "REPEATED")} }}
message_type {{ name: "Int64List" {_field("value", 1, "INT64", "REPEATED")} }}
message_type {{ name: "Feature" {_field("bytes_list", 1, ".fuzz.BytesList")}
  {_field("int64_list", 3, ".fuzz.Int64List")} }}
message_type {{ name: "Features"
  {_field("feature", 1, ".fuzz.Features.FeatureEntry", "REPEATED")}
  nested_type {{ name: "FeatureEntry" options {{ map_entry: true }}
    {_field("key", 1, "STRING")} {_field("value", 2, ".fuzz.Feature")} }} }}
message_type {{ name: "Example" {_field("features", 1, ".fuzz.Features")} }}
"""


@cache
def protobuf_example() -> Any:
    """Return protobuf's own class for a tf.train.Example."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fuzz.Example"))


def features_of(data: bytes) -> dict[str, list[Any]] | None:
    """Return the values of each feature as protobuf reads them; None if its bytes differ."""
    message = protobuf_example()()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    if message.SerializeToString(deterministic=True) != data:
        return None
    return {
        name: list((each.bytes_list if each.bytes_list.value else each.int64_list).value)
        for name, each in message.features.feature.items()
    }


def example(sample: Sample = SAMPLE, payload: bytes = bytes(range(24))) -> bytes:
    suffix = encode_suffix(sample, (3, 2))
    return encode_prefix(len(payload), len(suffix)) + payload + suffix


def prompt() -> bytes:
    cells = np.array([[-1] * 4, [0, 0, 1, 2], [-1, 1, 0, 0]], np.int16)
    return encode_prompt(Prompt(SAMPLE.sample_id, SAMPLE.task_id, SAMPLE.token_ids, cells))


def framed(*records: bytes) -> bytes:
    return b"".join(frame_header(len(r)) + r + frame_footer(crc32c(r)) for r in records)


def check_example(data: bytes) -> str:
    """Check that the encoder and protobuf write an accepted record's values to the same bytes."""
    answer = "refused"
    with contextlib.suppress(ExampleError):
        found = decode_example(data)
        suffix = encode_suffix(found.sample, found.shape)
        payload = bytes(found.activation)
        assert encode_prefix(len(payload), len(suffix)) + payload + suffix == data
        assert features_of(data) == {
            "activation": [payload],
            "num_tokens": [found.sample.num_tokens],
            "sample_id": [found.sample.sample_id.encode()],
            "shape": list(found.shape),
            "task_id": [found.sample.task_id.encode()],
            "token_ids": found.sample.token_ids.tolist(),
            **({"truncated_tokens": [cut]} if (cut := found.sample.truncated_tokens) else {}),
        }
        answer = "accepted"
    with contextlib.suppress(ExampleError):
        assert encode_prompt(decode_prompt(data)) == data
        assert features_of(data) is not None
        answer = "accepted"
    return answer


def check_records(data: bytes) -> str:
    """Check that a writer makes the same bytes from the records of an accepted file."""
    try:
        assert framed(*map(bytes, read_records(io.BytesIO(data), "file"))) == data
    except CorruptRecordError:
        return "refused"
    return "accepted"


# Metadata and manifests


def metadata() -> Metadata:
    """Return the metadata of a small dataset."""
    from tests.activation_dataset.synthetic import write_dataset

    with tempfile.TemporaryDirectory() as folder:
        return write_dataset(Path(folder), [[3, 4]], layers=(10,), hidden=2)


def manifest() -> bytes:
    """Return the manifest of a small layer file."""
    found = metadata()
    (shard,), (statistics,) = found.shards, found.statistics.values()
    file, order = shard.files[10], sample_order(["a", "b"])
    return LayerManifest(0, 2, 7, 2, order, "xla", 10, file, statistics).to_bytes()


def resealed(data: bytes, digest: str) -> bytes:
    """Return an object with a matching digest, so that its reader checks the fields."""
    try:
        value = json.loads(data)
        value.pop(digest, None)
        return sealed_text(value, digest).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return data


def check_metadata(data: bytes) -> str:
    try:
        found = Metadata.from_json(resealed(data, "metadata_sha256"))
    except FieldError:
        return "refused"
    assert Metadata.from_json(found.to_json()).to_json() == found.to_json()
    return "accepted"


def check_manifest(data: bytes) -> str:
    try:
        found = LayerManifest.from_bytes(resealed(data, "manifest_sha256"))
    except FieldError:
        return "refused"
    assert LayerManifest.from_bytes(found.to_bytes()) == found
    return "accepted"


JSON_WORDS = [
    *(b'"train"', b'"test"', b'"input"', b'"output"', b'"id"', b'"text"', b'"messages"', b"null"),
    *(b"[[", b"]]", b"{}", b"[]", b"NaN", b"1e999", b"-1", b"true", b"\\ud800", b"\n{", b"\x00"),
]


def targets() -> dict[str, Callable[[], Target]]:
    """Return functions that make the targets, by name."""
    encoded = [text.encode() for text in TASK_FILES]
    return {
        "tasks": lambda: Target(encoded, check_tasks, JSON_WORDS),
        "blocks": lambda: Target(
            [*blocks.SEEDS, b"\n".join(encoded), *encoded],
            blocks.check,
            [*JSON_WORDS, *blocks.WORDS],
        ),
        "examples": lambda: Target([example(), example(TRUNCATED), prompt()], check_example),
        "records": lambda: Target([framed(b"one", b"", b"three"), framed()], check_records),
        "metadata": lambda: Target([metadata().to_json().encode()], check_metadata, JSON_WORDS),
        "manifest": lambda: Target([manifest()], check_manifest, JSON_WORDS),
    }


def mutate(generator: random.Random, data: bytes, target: Target) -> bytes:
    """Change an input in one to eight places."""
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
    """Error for an input that takes too long."""


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
    """Give inputs to a reader and count the results. An error gets a note with the input."""
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
        answers[answer] += 1
        # Accepted inputs are mutated further. The pool stays small.
        if answer == "accepted" and len(data) < 4000:
            pool.append(data) if len(pool) < 300 else pool.__setitem__(
                generator.randrange(len(target.seeds), 300), data
            )
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=[*targets(), "all"])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for name, make in targets().items():
        if arguments.target in (name, "all"):
            started = time.monotonic()
            answers = fuzz(make(), arguments.inputs, arguments.seed)
            seconds = time.monotonic() - started
            print(f"{name}: {answers.total()} inputs in {seconds:.0f} s, {dict(answers)}")


if __name__ == "__main__":
    main()
