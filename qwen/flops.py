"""FLOPs of the matrix products in layers. A multiply-add counts as two.

Elementwise operations and inactive experts do not count. This module does not import JAX.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qwen.config import DELTA_CHUNK, DeltaConfig, ExpertsConfig, LayerKind, ModelConfig


def flops_of(
    config: ModelConfig, depth: int, slots: int, lengths: Sequence[int] | np.ndarray
) -> int:
    """Return the FLOPs of the lowest `depth` layers.

    Args:
        config: the model.
        depth: number of layers.
        slots: token slots that the layers process.
        lengths: number of tokens of each sample in the slots; attention stays within a sample.
    """
    found = np.asarray(lengths, np.int64)
    return sum(
        count * (slots * token_flops(config, kind) + pair_flops(config, kind) * pairs(found, kind))
        for kind, count in Counter(config.kind(layer) for layer in range(depth)).items()
    )


def token_flops(config: ModelConfig, kind: LayerKind) -> int:
    """Return the FLOPs of a layer for one token, without attention scores."""
    hidden = config.hidden_size
    if kind.mixer == "delta" and config.delta is not None:
        mixer = delta_flops(config.delta, hidden)
    else:
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        kept = queries * (3 if config.output_gate else 2)  # Queries, outputs and gates.
        mixer = 2 * hidden * config.head_dim * (kept + 2 * keys)
    if kind.experts and config.experts is not None:
        return mixer + experts_flops(config.experts, hidden)
    return mixer + mlp_flops(hidden, config.intermediate_size)


def pair_flops(config: ModelConfig, kind: LayerKind) -> int:
    """Return the FLOPs of a layer's attention for one query-key pair."""
    return 4 * config.num_attention_heads * config.head_dim if kind.mixer == "attention" else 0


def pairs(lengths: np.ndarray, kind: LayerKind) -> int:
    """Return the number of query-key pairs in a layer for samples of `lengths` [samples]."""
    if kind.mixer == "delta":
        return 0
    reach = lengths if kind.window is None else np.minimum(lengths, kind.window)
    return int((reach * (reach + 1) // 2 + (lengths - reach) * reach).sum())


def mlp_flops(hidden: int, intermediate: int) -> int:
    """Return the FLOPs of a gated MLP for one token."""
    return 6 * hidden * intermediate


def experts_flops(config: ExpertsConfig, hidden: int) -> int:
    """Return the FLOPs of experts for one token, with the router and the gated shared expert."""
    shared = config.shared_intermediate_size
    return (
        2 * hidden * config.num_experts
        + config.num_experts_per_tok * mlp_flops(hidden, config.intermediate_size)
        + (mlp_flops(hidden, shared) + 2 * hidden if shared else 0)
    )


def delta_flops(config: DeltaConfig, hidden: int) -> int:
    """Return the FLOPs of a gated delta network for one token, with the chunked delta rule."""
    key_heads, heads = config.num_key_heads, config.num_value_heads
    keys, values = config.key_head_dim, config.value_head_dim
    projected = 2 * key_heads * keys + heads * (2 * values + 2)  # With gates, decays and betas.
    within_chunk = (
        2 * key_heads * keys  # Products of keys with keys, and of queries with keys.
        + heads * (keys + values) / 2  # The triangular system.
        + heads * values  # Reads of the chunk's own values.
    )
    state = 3 * heads * keys * values  # Known values, reads and writes.
    return 2 * (hidden * (projected + heads * values) + int(DELTA_CHUNK * within_chunk) + state)
