"""The size of the output, to the byte, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam

from activation_dataset.prompts import Prompt, encode_prompt
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES


class OutputTooLargeError(ValueError):
    """A run whose output would be larger than the user allows."""


@dataclass(frozen=True)
class OutputSize:
    """Bytes of the records of some samples, framing included: of one site, and of prompts."""

    layer: int = 0
    prompts: int = 0

    def __add__(self, other: OutputSize) -> OutputSize:
        return OutputSize(self.layer + other.layer, self.prompts + other.prompts)

    def total(self, sites: int) -> int:
        """Return the bytes of all files of that many sites, without the small files of JSON."""
        return sites * self.layer + self.prompts


def output_size(prompt: Prompt, kind: RecordKind) -> OutputSize:
    """Return the bytes of a sample's records."""
    record = frame_record(kind.sample(prompt), kind)
    return OutputSize(record.size, HEADER_BYTES + len(encode_prompt(prompt)) + FOOTER_BYTES)


def check_output_size(size: OutputSize, sites: int, max_bytes: int | None) -> None:
    """Refuse output that is too large.

    Raises:
      OutputTooLargeError: if the files of that many sites would hold more than `max_bytes`.
    """
    if max_bytes is not None and size.total(sites) > max_bytes:
        raise OutputTooLargeError(
            f"the output would have {size.total(sites):,} bytes ({size.layer:,} in each of "
            f"{sites} layer folders, {size.prompts:,} of prompts), --max_output_bytes allows "
            f"{max_bytes:,}. Choose fewer layers or hook points, another --pooling or "
            "--storage_dtype, fewer tasks, or allow more."
        )


class SumSizes(beam.CombineFn):
    """Adds up the `OutputSize` of prompts."""

    def __init__(self, kind: RecordKind) -> None:
        self._kind = kind

    def create_accumulator(self) -> OutputSize:
        return OutputSize()

    def add_input(self, size: OutputSize, prompt: Prompt) -> OutputSize:
        return size + output_size(prompt, self._kind)

    def merge_accumulators(self, sizes: Iterable[OutputSize]) -> OutputSize:
        return sum(sizes, OutputSize())

    def extract_output(self, size: OutputSize) -> OutputSize:
        return size
