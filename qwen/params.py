"""Which checkpoint tensors make which parameter, how they are laid out and how they are sharded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen.attention import AttentionForm
from qwen.checkpoint import Weights
from qwen.config import ModelConfig
from qwen.model import MODEL_AXIS, DecoderLayer, Qwen2
from qwen.ops import amx

Layout = Callable[[list[np.ndarray], ModelConfig], np.ndarray]


def _as_is(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    return tensors[0]


def _transposed(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """[out, in] to [in, out]"""
    return tensors[0].T


def _joined_qkv(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """q, k, v as [heads * D, ...] to [..., K, G + 2, D], each key-value head with its queries."""
    heads, head_dim = config.num_key_value_heads, config.head_dim
    parts = [t.reshape(heads, -1, head_dim, *t.shape[1:]) for t in tensors]
    joined = np.concatenate(parts, axis=1)
    return joined if joined.ndim == 3 else np.moveaxis(joined, -1, 0)


def _out_kernel(tensors: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """[H, heads * D] to [K, G, D, H]"""
    return tensors[0].T.reshape(
        config.num_key_value_heads, config.query_groups, config.head_dim, config.hidden_size
    )


@dataclass(frozen=True)
class ParameterSource:
    """One parameter: the checkpoint tensors it is made of, their layout and its sharding.

    Attributes:
      contracted: of a product's kernel, how many of its first axes the product contracts.
    """

    tensors: tuple[str, ...]
    layout: Layout
    spec: P
    contracted: int = 0

    def spec_in(self, form: AttentionForm) -> P:
        """Its sharding in the layout for a form: packed kernels have columns before depth."""
        if form != "amx" or not self.contracted:
            return self.spec
        depth, columns = (*self.spec, None)[:2]
        return P(columns, depth)

    def packed(self, kernel: jax.Array) -> jax.Array:
        """A product's kernel in the layout for AMX."""
        depth = math.prod(kernel.shape[: self.contracted])
        return amx.pack(kernel.reshape(depth, -1))


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

EMBEDDING = ParameterSource(("model.embed_tokens.weight",), _as_is, P())

LAYER_PARAMETERS: dict[tuple[str, ...], ParameterSource] = {
    ("attention_norm", "scale"): ParameterSource(("input_layernorm.weight",), _as_is, P()),
    ("attention", "qkv_kernel"): ParameterSource(
        tuple(f"{name}.weight" for name in _QKV), _joined_qkv, P(None, MODEL_AXIS), contracted=1
    ),
    ("attention", "qkv_bias"): ParameterSource(
        tuple(f"{name}.bias" for name in _QKV), _joined_qkv, P(MODEL_AXIS)
    ),
    ("attention", "out_kernel"): ParameterSource(
        ("self_attn.o_proj.weight",), _out_kernel, P(MODEL_AXIS), contracted=3
    ),
    ("mlp_norm", "scale"): ParameterSource(("post_attention_layernorm.weight",), _as_is, P()),
    ("mlp", "gate_kernel"): ParameterSource(
        ("mlp.gate_proj.weight",), _transposed, P(None, MODEL_AXIS), contracted=1
    ),
    ("mlp", "up_kernel"): ParameterSource(
        ("mlp.up_proj.weight",), _transposed, P(None, MODEL_AXIS), contracted=1
    ),
    ("mlp", "down_kernel"): ParameterSource(
        ("mlp.down_proj.weight",), _transposed, P(MODEL_AXIS), contracted=1
    ),
}
"""Every parameter of a layer, by its path; tensors are named without ``model.layers.N.``"""


def layer_specs(config: ModelConfig, dtype: jnp.dtype, form: AttentionForm) -> Any:
    """The partition specs of one layer's state, as a pytree of the state's structure."""
    state = nnx.state(nnx.eval_shape(lambda: DecoderLayer(config, dtype)))
    return nnx.map_state(lambda path, _: LAYER_PARAMETERS[path].spec_in(form), state)


def load_model(
    weights: Weights,
    config: ModelConfig,
    num_layers: int,
    dtype: jnp.dtype,
    mesh: Mesh,
    form: AttentionForm,
) -> Qwen2:
    """A model of the first ``num_layers`` layers, laid out for a form, on the mesh's devices.

    Tensors are read, laid out and cast one parameter at a time, and of a sharded parameter only
    the part that a device holds is copied, so that host memory stays near one parameter.
    """

    def placed(source: ParameterSource, prefix: str, shape: tuple[int, ...]) -> jax.Array:
        tensors = [weights.read(prefix + name) for name in source.tensors]
        array = source.layout(tensors, config)
        parameter = jax.make_array_from_callback(
            array.shape,
            NamedSharding(mesh, source.spec),
            lambda index: np.ascontiguousarray(array[index], dtype),
        )
        if form != "amx" or not source.contracted:
            return parameter
        return _packing(source, mesh, form)(parameter)

    return _with_parameters(placed, config, num_layers, dtype)


def abstract_model(
    config: ModelConfig, num_layers: int, dtype: jnp.dtype, mesh: Mesh, form: AttentionForm
) -> Qwen2:
    """The same with shapes, dtypes and shardings only, to compile before weights or devices are
    at hand."""

    def abstract(
        source: ParameterSource, prefix: str, shape: tuple[int, ...]
    ) -> jax.ShapeDtypeStruct:
        parameter = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, source.spec))
        if form != "amx" or not source.contracted:
            return parameter
        return jax.eval_shape(_packing(source, mesh, form), parameter)

    return _with_parameters(abstract, config, num_layers, dtype)


@cache
def _packing(
    source: ParameterSource, mesh: Mesh, form: AttentionForm
) -> Callable[[jax.Array], jax.Array]:
    in_specs, out_specs = source.spec, source.spec_in(form)
    pack = partial(jax.shard_map, mesh=mesh, check_vma=False)
    return jax.jit(pack(source.packed, in_specs=in_specs, out_specs=out_specs))


def _with_parameters(
    make: Callable[[ParameterSource, str, tuple[int, ...]], Any],
    config: ModelConfig,
    num_layers: int,
    dtype: jnp.dtype,
) -> Qwen2:
    """A model whose parameters are what ``make`` gives for a source, its prefix and its shape."""

    def made(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        if path == ("embedding",):
            return variable.replace(make(EMBEDDING, "", variable.shape))
        layer, rest = path[1], path[2:]
        return variable.replace(
            make(LAYER_PARAMETERS[rest], f"model.layers.{layer}.", variable.shape)
        )

    graphdef, state = nnx.split(nnx.eval_shape(lambda: Qwen2(config, num_layers, dtype)))
    return nnx.merge(graphdef, nnx.map_state(made, state))
