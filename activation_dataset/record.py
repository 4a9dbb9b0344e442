"""Records of a layer file: their token ids, and all their bytes except the vectors.

The prompt determines everything in a record except the vectors. The job encodes this part once for
each sample, and shares it between all sites of the same width.
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
    """Properties of all records of a site.

    Attributes:
        pooling: pooling of the vectors.
        storage_dtype: dtype of the stored elements.
        hidden: number of elements of a vector.
    """

    pooling: Pooling
    storage_dtype: StorageDtype
    hidden: int

    @property
    def row_elements(self) -> int:
        """Number of elements of `numpy_dtype` in a stored vector, including any scale."""
        return row_elements(self.storage_dtype, self.hidden)

    @property
    def vector_bytes(self) -> int:
        """Size of one stored vector in bytes."""
        return self.row_elements * numpy_dtype(self.storage_dtype).itemsize

    def sample(self, prompt: Prompt) -> Sample:
        """Return the sample in the record of a prompt, with the token ids that pooling keeps."""
        if self.pooling == "last":
            return replace(prompt.sample, token_ids=prompt.token_ids[-1:], positions=None)
        return replace(prompt.sample, token_ids=prompt.chosen_ids)

    def vectors(self, sample: Sample) -> int:
        """Return the number of vectors in the record of a sample."""
        return len(sample.token_ids) if self.pooling == "none" else 1

    def shape(self, sample: Sample) -> tuple[int, ...]:
        """Return the feature `shape` of the record of a sample."""
        return (self.vectors(sample), self.hidden) if self.pooling == "none" else (self.hidden,)

    def check(self, sample: Sample) -> None:
        """Check that a sample has as many token ids as the pooling keeps.

        Raises:
            ValueError: if the number of token ids or the positions do not fit.
        """
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
        """Return the stored rows of a decoded record.

        Returns:
            [row elements] or [vectors, row elements] of `numpy_dtype`, a read-only view that may be
            unaligned.

        Raises:
            ExampleError: if the shape, size or token ids do not fit this kind of record.
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
    """All bytes of a record except the vectors and the CRC that covers them.

    Attributes:
        head: TFRecord header, and the Example before the vectors.
        payload_bytes: size of the vectors.
        suffix: the Example after the vectors. The TFRecord footer follows.
        sample_id: id of the sample.
        num_tokens: number of tokens of the prompt.
        vectors: number of vectors in the record.
    """

    head: bytes
    payload_bytes: int
    suffix: bytes
    sample_id: str
    num_tokens: int
    vectors: int

    @property
    def size(self) -> int:
        """Size of the whole record in bytes."""
        return len(self.head) + self.payload_bytes + len(self.suffix) + FOOTER_BYTES


def frame_record(sample: Sample, kind: RecordKind) -> RecordFrame:
    """Encode everything in the record of a sample except the vectors.

    Raises:
        ValueError: if the sample does not fit the kind, see `RecordKind.check`.
    """
    kind.check(sample)
    vectors = kind.vectors(sample)
    payload_bytes = vectors * kind.vector_bytes
    suffix = encode_suffix(sample, kind.shape(sample))
    prefix = encode_prefix(payload_bytes, len(suffix))
    head = frame_header(len(prefix) + payload_bytes + len(suffix)) + prefix
    return RecordFrame(head, payload_bytes, suffix, sample.sample_id, sample.num_tokens, vectors)
