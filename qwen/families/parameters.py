"""What a parameter is made of: checkpoint tensors, how they are laid out and how they are split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwen.config import ModelConfig

Layout = Callable[[list[np.ndarray], ModelConfig], np.ndarray]


@dataclass(frozen=True)
class ParameterSource:
    """One parameter of the model.

    Attributes:
      tensors: names of the checkpoint tensors that it is made of.
      layout: makes the parameter from them.
      split_axis: the axis that is split over the mesh's model axis; None if every device has all.
      contracted: for the kernel of a product, how many of its first axes the product contracts.
    """

    tensors: tuple[str, ...]
    layout: Layout
    split_axis: int | None = None
    contracted: int = 0


def unchanged(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    return tensors[0]


def transposed(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """[out, in] to [in, out]."""
    return tensors[0].T


def joined_qkv(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """q, k, v of [heads * D, ...] to [..., K, G + 2, D]: each key-value head with its queries."""
    heads, head_dim = config.num_key_value_heads, config.head_dim
    parts = [t.reshape(heads, -1, head_dim, *t.shape[1:]) for t in tensors]
    joined = np.concatenate(parts, axis=1)
    return joined if joined.ndim == 3 else np.moveaxis(joined, -1, 0)


def split_heads(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """[H, heads * D] to [K, G, D, H]."""
    return tensors[0].T.reshape(
        config.num_key_value_heads, config.query_groups, config.head_dim, config.hidden_size
    )
