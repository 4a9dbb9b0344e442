"""Exact size of the output in bytes, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import apache_beam as beam

from activation_dataset.prompts import Prompt, encode_prompt
from activation_dataset.record import RecordKind, frame_record
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES


class OutputTooLargeError(ValueError):
    """A run with more output than `--max_output_bytes` allows."""


@dataclass(frozen=True)
class OutputSize:
    """Bytes of the framed records of some samples, for all sites and for prompts."""

    layers: int = 0
    prompts: int = 0

    def __add__(self, other: OutputSize) -> OutputSize:
        return OutputSize(self.layers + other.layers, self.prompts + other.prompts)

    @property
    def total(self) -> int:
        """Bytes of all files except the small JSON files."""
        return self.layers + self.prompts


def record_bytes(prompt: Prompt, kind: RecordKind | None) -> int:
    """Return the bytes of a sample's record in a layer file, or in the file of prompts."""
    if kind is None:
        return HEADER_BYTES + len(encode_prompt(prompt)) + FOOTER_BYTES
    return frame_record(kind.sample(prompt), kind).size


def output_size(prompt: Prompt, kinds: Mapping[RecordKind, int]) -> OutputSize:
    """Return the bytes of a sample's records, given the number of sites of each kind."""
    layers = sum(record_bytes(prompt, kind) * sites for kind, sites in kinds.items())
    return OutputSize(layers, record_bytes(prompt, None))


def check_output_size(size: OutputSize, sites: int, max_bytes: int | None) -> None:
    """Refuse output that is too large.

    Raises:
        OutputTooLargeError: if the files of that many sites would hold more than `max_bytes`.
    """
    if max_bytes is not None and size.total > max_bytes:
        raise OutputTooLargeError(
            f"the output would have {size.total:,} bytes ({size.layers:,} in "
            f"{sites} layer folders, {size.prompts:,} of prompts); --max_output_bytes allows "
            f"{max_bytes:,}. Choose fewer layers or hook points, another --pooling or "
            "--storage_dtype, fewer tasks, or allow more."
        )


class SumSizes(beam.CombineFn):
    """Add up the `OutputSize` of prompts."""

    def __init__(self, kinds: Mapping[RecordKind, int]) -> None:
        self._kinds = kinds

    def create_accumulator(self) -> OutputSize:
        return OutputSize()

    def add_input(self, size: OutputSize, prompt: Prompt) -> OutputSize:
        return size + output_size(prompt, self._kinds)

    def merge_accumulators(self, sizes: Iterable[OutputSize]) -> OutputSize:
        return sum(sizes, OutputSize())

    def extract_output(self, size: OutputSize) -> OutputSize:
        return size
