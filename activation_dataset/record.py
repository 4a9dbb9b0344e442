"""Records of a layer file: which token ids they keep, and all their bytes but the vectors.

Everything in a record except the vectors follows from the prompt, so it is encoded once for each
sample and shared by all sites of the same width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.example import DecodedExample, ExampleError, encode_prefix, encode_suffix
from activation_dataset.format import Pooling, Sample, StorageDtype, numpy_dtype
from activation_dataset.prompts import Prompt
from activation_dataset.tfrecord import FOOTER_BYTES, frame_header


@dataclass(frozen=True)
class RecordKind:
    """Properties that all records of a site share; `hidden` is the elements of a vector."""

    pooling: Pooling
    storage_dtype: StorageDtype
    hidden: int

    @property
    def vector_bytes(self) -> int:
        """Bytes of one stored vector."""
        return self.hidden * numpy_dtype(self.storage_dtype).itemsize

    def sample(self, prompt: Prompt) -> Sample:
        """The sample in the record of a prompt, with the token ids that the pooling keeps."""
        kept = prompt.token_ids[-1:] if self.pooling == "last" else prompt.token_ids
        return replace(prompt.sample, token_ids=kept)

    def vectors(self, num_tokens: int) -> int:
        """Vectors in the record of a prompt of that many tokens."""
        return num_tokens if self.pooling == "none" else 1

    def shape(self, num_tokens: int) -> tuple[int, ...]:
        """The feature `shape` of the record of a prompt of that many tokens."""
        return (num_tokens, self.hidden) if self.pooling == "none" else (self.hidden,)

    def check(self, sample: Sample) -> None:
        """Raise ValueError unless the sample has as many token ids as the pooling keeps."""
        expected = 1 if self.pooling == "last" else sample.num_tokens
        if len(sample.token_ids) != expected:
            raise ValueError(
                f"sample {sample.sample_id!r} has {len(sample.token_ids)} token_ids; with pooling "
                f"{self.pooling!r} a prompt of {sample.num_tokens} tokens needs {expected}"
            )

    def activation(self, example: DecodedExample) -> NDArray[Any]:
        """The stored elements of a decoded record, [hidden] or [num_tokens, hidden].

        Returns:
            A read-only view, "<f4" or "<u2" with the bits of bfloat16, that may be unaligned.

        Raises:
            ExampleError: the shape, size or token ids do not fit this kind of record.
        """
        try:
            self.check(example.sample)
        except ValueError as error:
            raise ExampleError(str(error)) from None
        num_tokens = example.sample.num_tokens
        expected = self.shape(num_tokens)
        if example.shape != expected:
            raise ExampleError(f"shape is {example.shape}, expected {expected}")
        size = self.vectors(num_tokens) * self.vector_bytes
        if len(example.activation) != size:
            raise ExampleError(f"activation has {len(example.activation)} bytes, expected {size}")
        stored = np.frombuffer(example.activation, numpy_dtype(self.storage_dtype))
        return stored.reshape(expected)


@dataclass(frozen=True)
class RecordFrame:
    """All bytes of a record but the vectors and the CRC that covers them.

    Attributes:
        head: the TFRecord header and the Example up to the vectors.
        suffix: the Example after the vectors. The TFRecord footer follows it.
        vectors, payload_bytes: number of the vectors in the record, and their size.
        sample_id, num_tokens: of the prompt.
    """

    head: bytes
    payload_bytes: int
    suffix: bytes
    sample_id: str
    num_tokens: int
    vectors: int

    @property
    def size(self) -> int:
        """Bytes of the whole record in the file."""
        return len(self.head) + self.payload_bytes + len(self.suffix) + FOOTER_BYTES


def frame_record(sample: Sample, kind: RecordKind) -> RecordFrame:
    """Encode everything in a sample's record but its vectors. Raises ValueError, see `check`."""
    kind.check(sample)
    vectors = kind.vectors(sample.num_tokens)
    payload_bytes = vectors * kind.vector_bytes
    suffix = encode_suffix(sample, kind.shape(sample.num_tokens))
    prefix = encode_prefix(payload_bytes, len(suffix))
    head = frame_header(len(prefix) + payload_bytes + len(suffix)) + prefix
    return RecordFrame(head, payload_bytes, suffix, sample.sample_id, sample.num_tokens, vectors)
