"""Parameters of the model: read, laid out for the operations, and placed on the mesh's devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
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
from qwen.families import family_of
from qwen.families.parameters import ParameterSource
from qwen.mesh import MODEL_AXIS
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

    Tensors are read, laid out and cast one parameter at a time, and each device copies only its
    part of a split parameter, so that host memory stays near one parameter.
    """
    tiles = _tiles(config, mesh, ops)

    def placed(source: ParameterSource, prefix: str, shape: tuple[int, ...]) -> jax.Array:
        tensors = [weights.read(prefix + name) for name in source.tensors]
        array = source.layout(tensors, config)
        parameter = jax.make_array_from_callback(
            array.shape,
            NamedSharding(mesh, _spec(source)),
            lambda index: np.ascontiguousarray(array[index], dtype),
        )
        return tiles[source](parameter) if source in tiles else parameter

    return _with_parameters(placed, config, num_layers, dtype)


def abstract_model(
    config: ModelConfig, num_layers: int, dtype: jnp.dtype, mesh: Mesh, ops: Ops
) -> Decoder:
    """Make the same model with shapes, dtypes and shardings only.

    Programs can be compiled with it before the weights or the devices are at hand.
    """
    tiles = _tiles(config, mesh, ops)

    def abstract(
        source: ParameterSource, prefix: str, shape: tuple[int, ...]
    ) -> jax.ShapeDtypeStruct:
        spec = _spec(source)
        if source in tiles:
            shape = jax.eval_shape(tiles[source], jax.ShapeDtypeStruct(shape, dtype)).shape
            spec = _tiled_spec(source)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    return _with_parameters(abstract, config, num_layers, dtype)


def _spec(source: ParameterSource) -> P:
    return P() if source.split_axis is None else P(*[None] * source.split_axis, MODEL_AXIS)


def _tiled_spec(source: ParameterSource) -> P:
    """The spec of a tiled kernel, which has columns before depth."""
    return P() if source.split_axis is None else P(*[None] * (1 - source.split_axis), MODEL_AXIS)


def _tiles(config: ModelConfig, mesh: Mesh, ops: Ops) -> dict[ParameterSource, Tile]:
    """Programs that tile the kernels of products, each on the device that holds its part."""

    def tile(contracted: int, kernel: jax.Array) -> jax.Array:
        return ops.tile_kernel(kernel.reshape(math.prod(kernel.shape[:contracted]), -1))

    return {
        source: jax.jit(
            jax.shard_map(
                partial(tile, source.contracted),
                mesh=mesh,
                in_specs=_spec(source),
                out_specs=_tiled_spec(source),
                check_vma=False,
            )
        )
        for source in family_of(config).layer_parameters.values()
        if ops.tiles_kernels and source.contracted
    }


def _with_parameters(
    make: Callable[[ParameterSource, str, tuple[int, ...]], Any],
    config: ModelConfig,
    num_layers: int,
    dtype: jnp.dtype,
) -> Decoder:
    """Make a model of the parameters that `make` gives for a source, its prefix and its shape."""
    family = family_of(config)

    def made(path: tuple[Any, ...], variable: nnx.Variable[Any]) -> nnx.Variable[Any]:
        if path == ("embedding",):
            return variable.replace(make(family.embedding, "", variable.shape))
        layer, rest = path[1], path[2:]
        source, prefix = family.layer_parameters[rest], family.layer_prefix.format(layer)
        return variable.replace(make(source, prefix, variable.shape))

    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, num_layers, dtype)))
    return nnx.merge(graphdef, nnx.map_state(made, state))
