"""Comparison of the FLOPs with the matrix products in the layers' programs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from qwen.config import SLIDING_ATTENTION, LayerKind, ModelConfig
from qwen.decoder import DecoderLayer
from qwen.flops import flops_of, pair_flops, pairs, token_flops
from qwen.layers.attention import QueriesKeysValues
from qwen.layers.rope import rotary_embedding
from qwen.mesh import make_mesh
from qwen.ops.base import Ops
from qwen.presets import PRESETS

ROWS, LENGTH = 1, 256


class WithoutScores(Ops):
    """Default operations without attention scores."""

    name = "xla"

    def attend(self, qkv: QueriesKeysValues, *_: Any) -> jax.Array:
        return qkv[0]


def flops_in(jaxpr: Any) -> int:
    """Return the FLOPs of all products in a program; each iteration of a loop counts."""
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        shapes = [value.aval.shape for value in equation.invars if hasattr(value, "aval")]
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            contracted = math.prod(shapes[0][axis] for axis in params["dimension_numbers"][0][0])
            total += 2 * out.size * contracted
        elif equation.primitive.name.startswith("ragged_dot"):
            total += 2 * out.size * shapes[0][-1]
        elif equation.primitive.name == "triangular_solve":
            total += out.size * shapes[0][-1]
        else:
            rounds = params.get("length", 1) if equation.primitive.name == "scan" else 1
            inner = [getattr(value, "jaxpr", value) for value in params.values()]
            total += rounds * sum(flops_in(each) for each in inner if hasattr(each, "eqns"))
    return total


def program_flops(config: ModelConfig, kind: LayerKind) -> int:
    """Return the FLOPs of a layer's program without attention scores."""
    layer = nnx.eval_shape(lambda: DecoderLayer(config, kind, jnp.dtype(jnp.float32)))
    graph, state = nnx.split(layer)
    slots = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    x = jax.ShapeDtypeStruct((ROWS, LENGTH, config.hidden_size), jnp.float32)

    def run(state: Any, x: jax.Array, segments: jax.Array, positions: jax.Array) -> jax.Array:
        rotary = rotary_embedding(positions, config)
        layer = nnx.merge(graph, state)
        return layer(x, rotary, segments, positions, WithoutScores(), ())["resid_post"]

    mesh = make_mesh((1, 1), jax.devices())
    sharded = jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return flops_in(jax.make_jaxpr(sharded)(state, x, slots, slots).jaxpr)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny")])
def test_flops_are_those_of_the_programs(name: str) -> None:
    config = PRESETS[name]
    for kind in {config.kind(layer) for layer in range(config.num_hidden_layers)}:
        counted = program_flops(config, kind)
        assert token_flops(config, kind) * ROWS * LENGTH == pytest.approx(counted, rel=1e-6), kind


def test_flops_of_qwen2_5_0_5b() -> None:
    """The trunk has 0.358 G parameters, each with one multiplication and addition per token."""
    config = PRESETS["Qwen2.5-0.5B"]
    assert flops_of(config, 24, 1, []) == pytest.approx(0.716e9, rel=2e-3)
    assert pair_flops(config, config.kind(0)) == 4 * 14 * 64


@pytest.mark.parametrize(("name", "billions"), [("Qwen3-30B-A3B", 2.7), ("Qwen3.5-35B-A3B", 2.4)])
def test_only_the_active_experts_count(name: str, billions: float) -> None:
    """The embedding and the head, part of about 3 G active parameters, do not count."""
    config = PRESETS[name]
    flops = flops_of(config, config.num_hidden_layers, 1, [])
    assert flops / 2 / 1e9 == pytest.approx(billions, abs=0.3)


@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_pairs_are_those_of_the_mask(window: int | None) -> None:
    lengths = np.array([1, 2, 5, 8])
    distances = [np.subtract.outer(np.arange(n), np.arange(n)) for n in lengths]
    visible = [(d >= 0) & (d < (window or 100)) for d in distances]
    assert pairs(lengths, LayerKind(window=window)) == sum(mask.sum() for mask in visible)
    assert pairs(lengths, LayerKind("delta")) == 0


def test_layers_of_several_kinds_are_added_up() -> None:
    config = replace(
        PRESETS["tiny-qwen3"],
        layer_types=("full_attention", SLIDING_ATTENTION),
        num_hidden_layers=2,
        sliding_window=4,
    )
    one, both = flops_of(config, 1, 10, [10]), flops_of(config, 2, 10, [10])
    assert one - (both - one) == pair_flops(config, config.kind(0)) * (55 - 34)
