"""Load parameters: read them, lay them out for the operations, place them on the mesh's devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen.checkpoint import Weights
from qwen.config import ModelConfig
from qwen.decoder import Decoder
from qwen.families import LAYER_PREFIX, family_of
from qwen.families.parameters import ParameterSource
from qwen.mesh import MODEL_AXIS, split_over
from qwen.ops.base import Ops

Tile = Callable[[jax.Array], jax.Array]


def load_model(
    weights: Weights,
    config: ModelConfig,
    num_layers: int,
    dtype: jnp.dtype,
    mesh: Mesh,
    ops: Ops,
) -> Decoder:
    """Load the first `num_layers` layers onto the mesh's devices.

    Parameters are read, laid out and cast one at a time, and each device copies only its part of a
    split parameter, so host memory stays near the size of one parameter.
    """
    split = split_over(config, mesh.shape[MODEL_AXIS])

    def placed(source: ParameterSource, prefix: str, parameter: nnx.Variable[Any]) -> jax.Array:
        tensors = [weights.read(prefix + name) for name in source.names]
        array, dtype = source.layout(tensors, split), parameter.dtype
        loaded = jax.make_array_from_callback(
            array.shape,
            NamedSharding(mesh, _spec(source)),
            lambda index: np.ascontiguousarray(array[index], dtype),
        )
        tile = _tile(source, mesh, ops)
        return tile(loaded) if tile else loaded

    return _with_parameters(placed, config, split, num_layers, dtype)


def abstract_model(
    config: ModelConfig, num_layers: int, dtype: jnp.dtype, mesh: Mesh, ops: Ops
) -> Decoder:
    """Return the model of `load_model` with only shapes, dtypes and shardings.

    Programs can be compiled with it before the weights are loaded and without the devices.
    """

    def abstract(
        source: ParameterSource, prefix: str, parameter: nnx.Variable[Any]
    ) -> jax.ShapeDtypeStruct:
        shape, dtype, spec = parameter.shape, parameter.dtype, _spec(source)
        if tile := _tile(source, mesh, ops):
            shape = jax.eval_shape(tile, jax.ShapeDtypeStruct(shape, dtype)).shape
            spec = _tiled_spec(source)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    split = split_over(config, mesh.shape[MODEL_AXIS])
    return _with_parameters(abstract, config, split, num_layers, dtype)


def _spec(source: ParameterSource) -> P:
    return P() if source.split_axis is None else P(*[None] * source.split_axis, MODEL_AXIS)


def _tiled_spec(source: ParameterSource) -> P:
    """Return the spec of a tiled kernel, which has columns before depth."""
    return P() if source.split_axis is None else P(*[None] * (1 - source.split_axis), MODEL_AXIS)


def _tile(source: ParameterSource, mesh: Mesh, ops: Ops) -> Tile | None:
    """Return a program that tiles a kernel, each part on the device that holds it.

    The result is None for other parameters, and for operations that do not tile kernels.
    """
    if not (ops.tiles_kernels and source.contracted):
        return None

    def tile(kernel: jax.Array) -> jax.Array:
        return ops.tile_kernel(kernel.reshape(math.prod(kernel.shape[: source.contracted]), -1))

    return jax.jit(
        jax.shard_map(
            tile,
            mesh=mesh,
            in_specs=_spec(source),
            out_specs=_tiled_spec(source),
            check_vma=False,
        )
    )


def _with_parameters(
    make: Callable[[ParameterSource, str, nnx.Variable[Any]], Any],
    config: ModelConfig,
    split: ModelConfig,
    num_layers: int,
    dtype: jnp.dtype,
) -> Decoder:
    """Build a model from the results of `make`.

    Args:
        make: returns a parameter, given its source, the prefix of its tensors and its variable.
        config: the model as stored.
        split: the model as laid out on the mesh, from `split_over`.
        num_layers: number of layers.
        dtype: dtype of the parameters.
    """
    family = family_of(config)
    embedding = family.embedding(config)
    layers = [family.layer_parameters(config, layer) for layer in range(num_layers)]

    def made(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        if path == ("embedding",):
            return variable.replace(make(embedding, "", variable))
        layer, rest = path[1], path[2:]
        prefix = LAYER_PREFIX.format(layer)
        return variable.replace(make(layers[layer][rest], prefix, variable))

    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(split, num_layers, dtype)))
    return nnx.merge(graphdef, nnx.map_state(made, state))
