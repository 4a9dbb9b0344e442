"""One record of a layer file: what it must look like, given the sample and the dataset's settings.

All that a record holds but the activation itself follows from the sample, so its bytes can be made
before the activation is known (writing) or compared after it was read (verifying).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.example import (
    DecodedExample,
    ExampleError,
    encode_prefix,
    encode_suffix,
)
from activation_dataset.format import Pooling, Sample, StorageDtype, numpy_dtype
from activation_dataset.tfrecord import FOOTER_BYTES, HEADER_BYTES, frame_header


@dataclass(frozen=True)
class RecordKind:
    """What the records of a dataset have in common.

    Attributes:
        pooling: "last", "mean" or "none".
        storage_dtype: of the stored elements.
        hidden: elements of a vector.
    """

    pooling: Pooling
    storage_dtype: StorageDtype
    hidden: int

    @property
    def vector_bytes(self) -> int:
        return self.hidden * numpy_dtype(self.storage_dtype).itemsize

    def vectors(self, sample: Sample) -> int:
        """Vectors in the sample's record."""
        return sample.num_tokens if self.pooling == "none" else 1

    def shape(self, sample: Sample) -> tuple[int, ...]:
        """The feature `shape` of the sample's record."""
        if self.pooling == "none":
            return (sample.num_tokens, self.hidden)
        return (self.hidden,)

    def check(self, sample: Sample) -> None:
        """Raises ValueError unless the sample has as many token_ids as the pooling keeps."""
        expected = 1 if self.pooling == "last" else sample.num_tokens
        if len(sample.token_ids) != expected:
            raise ValueError(
                f"sample {sample.sample_id!r} has {len(sample.token_ids)} token_ids; with pooling "
                f"{self.pooling!r} a prompt of {sample.num_tokens} tokens needs {expected}"
            )

    def activation(self, example: DecodedExample) -> NDArray[Any]:
        """The stored elements of a decoded record, [hidden] or [num_tokens, hidden].

        A read-only view, "<f4" or "<u2" with bfloat16's bits, that need not be aligned.

        Raises:
            ExampleError: shape, size or token_ids are not those of this kind of record.
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
        return stored.reshape(expected)


@dataclass(frozen=True)
class RecordFrame:
    """All bytes of a record but the activation and the CRC that covers it.

    Attributes:
        head: the TFRecord header and the Example up to the activation's bytes.
        payload_bytes: bytes of the activation.
        suffix: the Example after them; what follows is the TFRecord footer.
    """

    head: bytes
    payload_bytes: int
    suffix: bytes

    @property
    def prefix(self) -> bytes:
        """The Example's part of the head."""
        return self.head[HEADER_BYTES:]

    @property
    def size(self) -> int:
        """Bytes of the whole record in the file."""
        return len(self.head) + self.payload_bytes + len(self.suffix) + FOOTER_BYTES


def frame_record(sample: Sample, kind: RecordKind) -> RecordFrame:
    """The frame of the sample's record."""
    payload_bytes = kind.vectors(sample) * kind.vector_bytes
    suffix = encode_suffix(sample, kind.shape(sample))
    prefix = encode_prefix(payload_bytes, len(suffix))
    header = frame_header(len(prefix) + payload_bytes + len(suffix))
    return RecordFrame(header + prefix, payload_bytes, suffix)
