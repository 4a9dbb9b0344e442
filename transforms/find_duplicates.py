"""Tasks and documents with equal content, found by digests alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

import apache_beam as beam

from corpus.task import Document, Notice, Task


def content_digest(item: Task | Document) -> bytes:
    """Return 16 bytes that are equal for items with equal content.

    The content of a task is its training pairs and its test inputs, both in any order. Answers to a
    test are ignored, since not every file has them.
    """
    if isinstance(item, Task):
        train = sorted((pair.input, pair.output) for pair in item.train)
        content = repr((train, sorted(pair.input for pair in item.test)))
    else:
        content = json.dumps(asdict(replace(item, document_id="", source="")), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


class FindDuplicates(beam.PTransform):
    """Gives a `Notice` for each task or document that repeats the content of another."""

    def expand(self, items: beam.PCollection) -> beam.PCollection:
        return (
            items
            | "Digest" >> beam.Map(_digest_and_name)
            | "ByContent" >> beam.GroupByKey()
            | "Repeated" >> beam.FlatMapTuple(_notices)
        )


def _digest_and_name(item: Task | Document) -> tuple[bytes, tuple[str, str]]:
    item_id = item.task_id if isinstance(item, Task) else item.document_id
    return content_digest(item), (item.source, item_id)


def _notices(_: bytes, names: Iterable[tuple[str, str]]) -> Iterator[Notice]:
    (source, item_id), *others = sorted(names)
    for other, other_id in others:
        detail = f"{other}, task {other_id}: same content as {source}, task {item_id}"
        yield Notice(other, other_id, "same_content", detail)
