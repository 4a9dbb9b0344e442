"""Reading of files to tasks and documents, with separate outputs for rejections and notices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from activation_dataset.metadata import InputFile
from corpus.parse import parse_tasks
from corpus.tables import parse_table
from corpus.task import Document, Item, Notice, RejectedTask, Rejection, Task
from transforms.decompress import decompressed
from transforms.find_inputs import Pattern, common_root, match_files, source_of
from transforms.remote_input import without_query
from transforms.split_file import BLOCK_BYTES, Block, is_table, read_part, split_file
from transforms.task_file import TaskFile, open_tasks

REJECTED = "rejected"
"""Name of the output with rejected files, tasks and samples, in `ReadTasks` and `TokenizeTasks`."""

INPUTS = "inputs"
SKIPPED = "skipped"
NOTICES = "notices"


@dataclass(eq=False)
class ReadTasks(beam.PTransform):
    """Reads each file that the patterns match once.

    Outputs: `items`, tasks and documents; `rejected`, a `RejectedTask` for each unusable record;
    `notices`, a `Notice` for the first record of a block whose name cannot be its id; `inputs`, the
    size and digest of each file (`InputFile`); `skipped`, the names of files and folders that are
    left out. The source of a sample is the path of its file below the common folder of all
    patterns, so that keys do not depend on the place of that folder.

    Attributes:
        patterns: result of `resolve_patterns`.
        text_field: only content to read of each record; None to read any known content.
        block_bytes: minimum size of the blocks of a larger file. It does not change the outputs.
    """

    patterns: tuple[Pattern, ...]
    text_field: str | None = None
    block_bytes: int = BLOCK_BYTES

    def expand(self, begin: beam.pvalue.PBegin) -> beam.pvalue.DoOutputsTuple:
        return (
            begin
            | "Patterns" >> beam.Create(self.patterns)
            | "Match" >> beam.FlatMap(_found)
            | "EachOnce" >> beam.Distinct()
            | "Split"
            >> beam.FlatMap(_blocks, common_root(self.patterns), self.text_field, self.block_bytes)
            # One worker splits a file, and all workers read its blocks.
            | "Spread" >> beam.Reshuffle()
            | "Parse"
            >> beam.FlatMap(_tagged_items, self.text_field).with_outputs(
                REJECTED, INPUTS, SKIPPED, NOTICES, main="items"
            )
        )


def _found(pattern: Pattern) -> Iterator[tuple[bytes, bool]]:
    """Yield paths, which may hold bytes that are not UTF-8, and whether to read them."""
    found = match_files(pattern)
    yield from ((os.fsencode(path), True) for path in found.files)
    yield from ((os.fsencode(path), False) for path in found.skipped)


def _blocks(
    found: tuple[bytes, bool], root: str, text_field: str | None, block_bytes: int
) -> Iterator[Block | InputFile | str]:
    """Yield the blocks of a file, with its size and digest if it has parts, or a skipped name."""
    encoded, is_read = found
    path = os.fsdecode(encoded)
    source = source_of(path, root)
    if is_read:
        yield from split_file(path, source, text_field, block_bytes)
    else:
        yield source


def _tagged_items(
    found: Block | InputFile | str, text_field: str | None
) -> Iterator[Task | Document | TaggedOutput]:
    for item in read_block(found, text_field) if isinstance(found, Block) else (found,):
        tag = _TAGS.get(type(item))
        yield TaggedOutput(tag, item) if tag else item


def read_block(block: Block, text_field: str | None = None) -> Iterator[Item | InputFile]:
    """Yield the items of a block; for a whole file, the same as `read_file`."""
    path = os.fsdecode(block.path)
    if block.part is None:
        yield from read_file(path, block.source, text_field)
    else:
        yield from read_part(path, block.source, text_field, block.part)


_TAGS: Mapping[type, str] = {
    RejectedTask: REJECTED,
    InputFile: INPUTS,
    str: SKIPPED,
    Notice: NOTICES,
}


def read_file(path: str, source: str, text_field: str | None = None) -> Iterator[Item | InputFile]:
    """Yield the items of a file, called `source`, then its size and digest, as stored.

    Raises:
        TasksUnreadableError: if it cannot be opened or read.
    """
    with open_tasks(path) as file:
        if is_table(path):
            # The end of a table locates its columns, so the file is read again, in order.
            yield from parse_table(file, source, text_field)  # type: ignore[arg-type]
            file.seek(0)
        else:
            yield from _json_items(file, path, source, text_field)
        yield file.digest_rest(source)


def _json_items(file: TaskFile, path: str, source: str, text_field: str | None) -> Iterator[Item]:
    content = decompressed(file, without_query(path))  # type: ignore[arg-type]
    if content is None:
        yield from parse_tasks(file, source, text_field)  # type: ignore[arg-type]
        return
    for item in parse_tasks(content, source, text_field):  # type: ignore[arg-type]
        # The early end of the content needs no second rejection.
        if not (content.damage and isinstance(item, RejectedTask) and not item.task_id):
            yield item
    if content.damage:
        detail = f"cannot be decompressed to its end ({content.damage}); records before the damage "
        advice = "are read, the last of them may be wrong; copy or compress the file again"
        yield Rejection("damaged_archive", detail + advice).of(source)
