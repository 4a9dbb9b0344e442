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
from activation_dataset.format import Pooling, Sample
from activation_dataset.prompts import Prompt
from activation_dataset.storage_dtype import StorageDtype, numpy_dtype, row_elements
from activation_dataset.tfrecord import FOOTER_BYTES, frame_header


@dataclass(frozen=True)
class RecordKind:
    """Properties that all records of a site share; `hidden` is the elements of a vector."""

    pooling: Pooling
    storage_dtype: StorageDtype
    hidden: int

    @property
    def row_elements(self) -> int:
        """Elements of `numpy_dtype` in one stored vector, with its scale if it has one."""
        return row_elements(self.storage_dtype, self.hidden)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one stored vector."""
        return self.row_elements * numpy_dtype(self.storage_dtype).itemsize

    def sample(self, prompt: Prompt) -> Sample:
        """The sample in the record of a prompt, with the token ids that the pooling keeps."""
        if self.pooling == "last":
            return replace(prompt.sample, token_ids=prompt.token_ids[-1:], positions=None)
        return replace(prompt.sample, token_ids=prompt.chosen_ids)

    def vectors(self, sample: Sample) -> int:
        """Vectors in the record of a sample."""
        return len(sample.token_ids) if self.pooling == "none" else 1

    def shape(self, sample: Sample) -> tuple[int, ...]:
        """The feature `shape` of the record of a sample."""
        return (self.vectors(sample), self.hidden) if self.pooling == "none" else (self.hidden,)

    def check(self, sample: Sample) -> None:
        """Raise ValueError unless the sample has as many token ids as the pooling keeps."""
        if self.pooling == "last":
            expected, positions = 1, sample.positions is None
        elif sample.positions is None:
            expected, positions = sample.num_tokens, True
        else:
            expected, at = len(sample.positions), sample.positions
            positions = bool((np.diff(at) > 0).all()) and (
                not expected or (at[0] >= 0 and at[-1] < sample.num_tokens)
            )
            positions = positions and expected < sample.num_tokens
        if len(sample.token_ids) != expected or not positions:
            raise ValueError(
                f"sample {sample.sample_id!r} has {len(sample.token_ids)} token_ids; with pooling "
                f"{self.pooling!r} a prompt of {sample.num_tokens} tokens needs {expected}, and "
                "ascending positions if some tokens are not chosen"
            )

    def activation(self, example: DecodedExample) -> NDArray[Any]:
        """The stored rows of a decoded record, [row elements] or [vectors, row elements].

        Returns:
            A read-only view of `numpy_dtype`, that may be unaligned.

        Raises:
            ExampleError: the shape, size or token ids do not fit this kind of record.
        """
        try:
            self.check(example.sample)
        except ValueError as error:
            raise ExampleError(str(error)) from None
        expected = self.shape(example.sample)
        if example.shape != expected:
            raise ExampleError(f"shape is {example.shape}, expected {expected}")
        size = self.vectors(example.sample) * self.vector_bytes
        if len(example.activation) != size:
            raise ExampleError(f"activation has {len(example.activation)} bytes, expected {size}")
        stored = np.frombuffer(example.activation, numpy_dtype(self.storage_dtype))
        return stored.reshape(*expected[:-1], self.row_elements)


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
    vectors = kind.vectors(sample)
    payload_bytes = vectors * kind.vector_bytes
    suffix = encode_suffix(sample, kind.shape(sample))
    prefix = encode_prefix(payload_bytes, len(suffix))
    head = frame_header(len(prefix) + payload_bytes + len(suffix)) + prefix
    return RecordFrame(head, payload_bytes, suffix, sample.sample_id, sample.num_tokens, vectors)
