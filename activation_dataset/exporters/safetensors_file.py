"""Writing safetensors files piece by piece, so that none has to fit into memory.

Format: https://huggingface.co/docs/safetensors: length of the header (uint64), the header (JSON,
padded with spaces), the tensors' bytes in the header's order, little-endian.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# uint16 stands for bfloat16 throughout this package.
_DTYPES = {"float32": "F32", "uint16": "BF16", "int64": "I64", "int32": "I32"}
_ALIGNMENT = 64


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written.

    Attributes:
        name: of the tensor.
        dtype: a numpy dtype; uint16 for bfloat16's bits.
        shape: of the whole.
        pieces: its elements, in any number of arrays of that dtype, end to end.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Iterable[NDArray[Any]]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(stream: BinaryIO, tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a whole file.

    Raises:
        ValueError: the pieces of a tensor do not add up to its shape.
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype.name],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    encoded = json.dumps(header).encode("utf-8")
    encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)
    stream.write(len(encoded).to_bytes(8, "little"))
    stream.write(encoded)
    for tensor in tensors:
        written = 0
        for piece in tensor.pieces:
            data = np.ascontiguousarray(piece, tensor.dtype.newbyteorder("<"))
            written += stream.write(data.reshape(-1).view(np.uint8).data)
        if written != tensor.bytes:
            raise ValueError(f"{tensor.name} has {written} bytes, expected {tensor.bytes}")
