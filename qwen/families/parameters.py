"""Sources of parameters: their checkpoint tensors, layout and split over devices.

The functions return the parameters that families share. Tensor names are as in transformers,
without the prefix of the layer. Tensor shapes are as in PyTorch: [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qwen.config import DeltaConfig, ExpertsConfig, ModelConfig

Layout = Callable[[list[np.ndarray], ModelConfig], np.ndarray]
"""Function from the tensors of a parameter and the config to the parameter."""

Path = tuple[str, ...]
"""Attribute names from a layer to its parameter."""


@dataclass(frozen=True)
class ParameterSource:
    """Source of one parameter.

    Attributes:
        tensors: names and shapes of the checkpoint tensors.
        layout: function that builds the parameter from the tensors.
        split_axis: axis that is split over the mesh's model axis; None if the parameter is
            replicated.
        contracted: number of leading axes that a product with the parameter contracts; 0 if the
            parameter is not the kernel of a product.
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    layout: Layout
    split_axis: int | None = None
    contracted: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(name for name, _ in self.tensors)


Parameters = Mapping[Path, ParameterSource]


def layer_parameters(config: ModelConfig, layer: int) -> Parameters:
    """Return the source of every parameter of a layer, by its path."""
    hidden, kind = config.hidden_size, config.kind(layer)
    if kind.mixer == "delta" and config.delta is not None:
        mixer = delta(config.delta, hidden)
    else:
        mixer = attention(config)
    if kind.experts and config.experts is not None:
        last = experts(config.experts, hidden)
    else:
        last = mlp("mlp", "mlp", hidden, config.intermediate_size)
    return {
        **norm("attention_norm", "input_layernorm", hidden, config),
        **mixer,
        **norm("mlp_norm", "post_attention_layernorm", hidden, config),
        **last,
    }


def norm(path: str, tensor: str, size: int, config: ModelConfig) -> Parameters:
    """Return the scale of an RMSNorm, by its path."""
    layout = plus_one if config.zero_centered_norms else unchanged
    return {(*path.split("."), "scale"): ParameterSource(((f"{tensor}.weight", (size,)),), layout)}


def attention(config: ModelConfig) -> Parameters:
    """Return the parameters of attention: kernels, and biases, norms and output gate if present."""
    hidden, size = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    widths = {
        "self_attn.q_proj": queries * (2 if config.output_gate else 1),
        "self_attn.k_proj": keys,
        "self_attn.v_proj": keys,
    }
    kernels = tuple((f"{name}.weight", (width, hidden)) for name, width in widths.items())
    biases = tuple((f"{name}.bias", (width,)) for name, width in widths.items())
    parameters: dict[Path, ParameterSource] = {
        ("attention", "qkv_kernel"): ParameterSource(
            kernels, joined_qkv, split_axis=1, contracted=1
        ),
        ("attention", "out_kernel"): ParameterSource(
            (("self_attn.o_proj.weight", (hidden, queries)),),
            split_heads,
            split_axis=0,
            contracted=3,
        ),
    }
    if config.attention_bias:
        parameters["attention", "qkv_bias"] = ParameterSource(biases, joined_qkv, split_axis=0)
    if config.output_gate:
        parameters["attention", "gate_kernel"] = ParameterSource(
            kernels[:1], output_gate, split_axis=1, contracted=1
        )
    if config.qk_norm:
        parameters |= norm("attention.query_norm", "self_attn.q_norm", size, config)
        parameters |= norm("attention.key_norm", "self_attn.k_norm", size, config)
    return parameters


def mlp(path: str, tensor: str, hidden: int, intermediate: int) -> Parameters:
    """Return the kernels of a gated MLP."""

    def kernel(name: str, shape: tuple[int, int], split_axis: int) -> ParameterSource:
        tensors = ((f"{tensor}.{name}.weight", shape),)
        return ParameterSource(tensors, transposed, split_axis, contracted=1)

    module = tuple(path.split("."))
    return {
        (*module, "gate_kernel"): kernel("gate_proj", (intermediate, hidden), 1),
        (*module, "up_kernel"): kernel("up_proj", (intermediate, hidden), 1),
        (*module, "down_kernel"): kernel("down_proj", (hidden, intermediate), 0),
    }


def experts(config: ExpertsConfig, hidden: int) -> Parameters:
    """Return the parameters of a mixture of experts, from tensors [E, 2 * I, H] and [E, H, I]."""
    number, size = config.num_experts, config.intermediate_size
    first = (("mlp.experts.gate_up_proj", (number, 2 * size, hidden)),)
    last = (("mlp.experts.down_proj", (number, hidden, size)),)

    def part(rows: slice) -> Layout:
        """Return a layout from [E, out, in] to [E, in, rows of out]."""
        return lambda tensors, _: tensors[0][:, rows].swapaxes(1, 2)

    parameters: dict[Path, ParameterSource] = {
        ("experts", "router_kernel"): ParameterSource(
            (("mlp.gate.weight", (number, hidden)),), transposed
        ),
        ("experts", "gate_kernel"): ParameterSource(first, part(slice(size)), split_axis=0),
        ("experts", "up_kernel"): ParameterSource(first, part(slice(size, None)), split_axis=0),
        ("experts", "down_kernel"): ParameterSource(last, part(slice(None)), split_axis=0),
    }
    if shared := config.shared_intermediate_size:
        parameters |= mlp("experts.shared", "mlp.shared_expert", hidden, shared)
        parameters["experts", "shared_gate_kernel"] = ParameterSource(
            (("mlp.shared_expert_gate.weight", (1, hidden)),), transposed
        )
    return parameters


def delta(config: DeltaConfig, hidden: int) -> Parameters:
    """Return the parameters of a gated delta network."""
    heads = config.num_key_heads
    keys, values = heads * config.key_head_dim, config.num_value_heads * config.value_head_dim
    sections = (keys, keys, values)

    def by_head(tensors: list[np.ndarray], _: ModelConfig) -> np.ndarray:
        """Transpose [heads * ..., ...] to [..., heads, ...]."""
        split = tensors[0].reshape(heads, -1, *tensors[0].shape[1:])
        return np.moveaxis(split, -1, 0) if split.ndim == 3 else split

    def joined(tensors: list[np.ndarray], _: ModelConfig) -> np.ndarray:
        """Group q, k and v, [2 * heads * D + values * E, ...], by head: [..., heads, W]."""
        whole = tensors[0].reshape(sum(sections), -1)
        parts = np.split(whole, np.cumsum(sections)[:-1])
        by_heads = [part.reshape(heads, -1, part.shape[-1]) for part in parts]
        return np.moveaxis(np.concatenate(by_heads, axis=1), -1, 0)

    def output(tensors: list[np.ndarray], _: ModelConfig) -> np.ndarray:
        """Transpose [H, values * E] to [heads, V * E, H]."""
        return tensors[0].T.reshape(heads, -1, hidden)

    def source(
        tensor: str,
        shape: tuple[int, ...],
        layout: Layout,
        split_axis: int | None,
        contracted: int = 0,
    ) -> ParameterSource:
        return ParameterSource(((f"linear_attn.{tensor}", shape),), layout, split_axis, contracted)

    each_value = (config.num_value_heads, hidden)
    channels = sum(sections)
    taps = config.conv_kernel_dim
    return {
        ("delta", "qkv_kernel"): source("in_proj_qkv.weight", (channels, hidden), joined, 1, 1),
        ("delta", "conv_kernel"): source("conv1d.weight", (channels, 1, taps), joined, 1),
        ("delta", "beta_kernel"): source("in_proj_b.weight", each_value, by_head, 1, 1),
        ("delta", "decay_kernel"): source("in_proj_a.weight", each_value, by_head, 1, 1),
        ("delta", "decay_bias"): source("dt_bias", each_value[:1], by_head, 0),
        ("delta", "decay_log_rate"): source("A_log", each_value[:1], by_head, 0),
        ("delta", "gate_kernel"): source("in_proj_z.weight", (values, hidden), by_head, 1, 1),
        ("delta", "norm", "scale"): source(
            "norm.weight", (config.value_head_dim,), unchanged, None
        ),
        ("delta", "out_kernel"): source("out_proj.weight", (hidden, values), output, 0, 2),
    }


def unchanged(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Return the only tensor unchanged."""
    return tensors[0]


def plus_one(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Return the scale in float32; the tensor stores the scale minus 1."""
    return tensors[0].astype(np.float32) + 1


def transposed(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Transpose [out, in] to [in, out]."""
    return tensors[0].T


def joined_qkv(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Join q, k and v, [heads * D, ...], by key-value head: [..., K, G + 2, D].

    If the config has more key-value heads than the tensors, because of `split_over`, the function
    repeats each head of the tensors.
    """
    heads, head_dim = config.num_key_value_heads, config.head_dim
    query, *others = tensors
    if config.output_gate:
        query = query.reshape(-1, 2, head_dim, *query.shape[1:])[:, 0]
    parts = [query.reshape(heads, -1, head_dim, *tensors[0].shape[1:])]
    for tensor in others:
        each = tensor.reshape(-1, 1, head_dim, *tensor.shape[1:])
        parts.append(each if len(each) == heads else each.repeat(heads // len(each), axis=0))
    joined = np.concatenate(parts, axis=1)
    return joined if joined.ndim == 3 else np.moveaxis(joined, -1, 0)


def output_gate(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Return the gate [H, K, G, D], the second half of each head of q [heads * 2 * D, H]."""
    gate = tensors[0].reshape(-1, 2, config.head_dim, config.hidden_size)[:, 1]
    heads, groups = config.num_key_value_heads, config.query_groups
    return np.moveaxis(gate.reshape(heads, groups, config.head_dim, -1), -1, 0)


def split_heads(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Transpose [H, heads * D] to [K, G, D, H]."""
    return tensors[0].T.reshape(
        config.num_key_value_heads, config.query_groups, config.head_dim, config.hidden_size
    )
