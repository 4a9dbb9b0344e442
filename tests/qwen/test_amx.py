"""The kernels for Intel's matrix registers, against numpy in float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen.attention import reference_attention
from qwen.config import PRESETS
from qwen.model import Attention, RMSNorm, rotary_embedding
from qwen.ops import amx

needs_amx = pytest.mark.skipif(
    not amx.available(), reason="the AMX kernels are not built, or this processor has no AMX"
)


def weights(rows: int, columns: int, seed: int) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) / np.sqrt(rows)
    return jnp.asarray(values, jnp.bfloat16)


EPSILON = 1e-6
FLOAT32, BFLOAT16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)

ROWS = pytest.mark.parametrize("rows", [2, 32, 70, 160, 1024], ids=lambda rows: f"{rows} rows")
"""Less than a block of 32, whole blocks, a block and a part; several units of work."""


def stream(rows: int, hidden: int) -> tuple[jax.Array, jax.Array]:
    """A residual stream, [2, rows / 2, hidden], and a norm's scale."""
    rng = np.random.default_rng(7)
    x = 3 * rng.standard_normal((2, rows // 2, hidden))
    scale = 1 + 0.3 * rng.standard_normal(hidden)
    return jnp.asarray(x, BFLOAT16), jnp.asarray(scale, BFLOAT16)


def normalised(x: jax.Array, scale: jax.Array) -> np.ndarray:
    """[rows, hidden] float64, rounded to bfloat16."""
    x64 = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    inverse = 1 / np.sqrt((x64**2).mean(-1, keepdims=True) + EPSILON)
    return rounded(x64 * inverse * np.asarray(scale, np.float64))


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(BFLOAT16).astype(np.float64)


def worst_error(found: jax.Array, expected: np.ndarray) -> float:
    """Largest |found - expected| / |expected| of a row."""
    errors = np.asarray(found, np.float64).reshape(expected.shape) - expected
    norms = np.linalg.norm(expected, axis=-1)
    return float((np.linalg.norm(errors, axis=-1) / norms).max())


@needs_amx
@ROWS
@pytest.mark.parametrize(
    ("hidden", "wide"), [(32, 64), (96, 416), (896, 4864)], ids=["small", "uneven", "Qwen2.5-0.5B"]
)
def test_the_mlp_computes_its_definition(rows: int, hidden: int, wide: int) -> None:
    x, scale = stream(rows, hidden)
    gate, up, down = weights(hidden, wide, 1), weights(hidden, wide, 2), weights(wide, hidden, 3)
    normed = normalised(x, scale)
    gates = normed @ np.asarray(gate, np.float64)
    gated = gates / (1 + np.exp(-gates)) * (normed @ np.asarray(up, np.float64))
    expected = rounded(gated) @ np.asarray(down, np.float64)
    packed = [amx.pack(kernel) for kernel in (gate, up, down)]
    update = amx.mlp(x, scale, EPSILON, *packed, dtype=FLOAT32)
    assert update.shape == x.shape
    assert update.dtype == FLOAT32
    assert worst_error(update, expected) < 3e-3
    after = amx.mlp(x, scale, EPSILON, *packed, dtype=BFLOAT16)
    assert (after == (x.astype(FLOAT32) + update).astype(BFLOAT16)).all()


@needs_amx
@ROWS
def test_the_output_projection_computes_its_definition(rows: int) -> None:
    x, _ = stream(rows, 96)
    attended, kernel = stream(rows, 6 * 64)[0], weights(6 * 64, 96, 1)
    packed = amx.pack(kernel)
    update = amx.output(attended, packed, x, FLOAT32)
    expected = np.asarray(attended, np.float64).reshape(rows, -1) @ np.asarray(kernel, np.float64)
    assert worst_error(update, expected) < 1e-5
    after = amx.output(attended, packed, x, BFLOAT16)
    assert (after == (x.astype(FLOAT32) + update).astype(BFLOAT16)).all()


@needs_amx
@ROWS
@pytest.mark.parametrize("size", amx.HEAD_DIMS)
def test_queries_keys_and_values_are_those_of_the_form_that_xla_compiles(
    rows: int, size: int
) -> None:
    heads, groups, hidden = 2, 3, 96
    x, scale = stream(rows, hidden)
    config = replace(PRESETS["Qwen2.5-0.5B"], hidden_size=hidden, num_attention_heads=6)
    config = replace(config, head_dim=size)
    attention, norm = Attention(config, FLOAT32), RMSNorm(hidden, EPSILON, FLOAT32)
    kernel = weights(hidden, heads * (groups + 2) * size, 1)
    bias = weights(heads * (groups + 2), size, 2).reshape(heads, groups + 2, size)
    attention.qkv_kernel[...] = kernel.reshape(attention.qkv_kernel.shape).astype(FLOAT32)
    attention.qkv_bias[...], norm.scale[...] = bias.astype(FLOAT32), scale.astype(FLOAT32)
    positions = jnp.arange(3, 3 + rows, dtype=jnp.int32).reshape(2, -1)
    rotary = rotary_embedding(positions, config)
    expected = attention.queries_keys_values(x.astype(FLOAT32), norm, rotary, "reference")
    found = amx.queries_keys_values(x, scale, EPSILON, amx.pack(kernel), bias, rotary)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == BFLOAT16
        assert worst_error(ours, np.asarray(theirs, np.float64)) < 1e-2


@needs_amx
def test_silu_is_right_far_from_zero() -> None:
    """A gate of -100 or 100 in one row each: 0 and the gate itself."""
    x = jnp.zeros((32, 32), jnp.bfloat16).at[0, 0].set(-1).at[1, 0].set(1)
    first = jnp.zeros((32, 32), jnp.bfloat16).at[0, 0]
    scale = jnp.full(32, 32**-0.5, jnp.bfloat16)
    kernels = [amx.pack(first.set(value)) for value in (100, 1, 1)]
    out = np.asarray(amx.mlp(x, scale, 0.0, *kernels, dtype=FLOAT32))
    assert abs(out[0, 0]) < 1e-30
    assert out[1, 0] == 100


@needs_amx
def test_heads_of_128_dimensions() -> None:
    """As in the larger Qwen2.5 models; heads of 64 are tested with the other forms."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(2 * rng.standard_normal((1, 512, 2, 6, 128)), jnp.bfloat16)
    k, v = (jnp.asarray(rng.standard_normal((1, 512, 2, 128)), jnp.bfloat16) for _ in range(2))
    segments = jnp.ones((1, 512), jnp.int32)
    out = amx.attention(q, k, v, jnp.arange(512, dtype=jnp.int32)[None]).astype(jnp.float32)
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    expected = reference_attention(q32, k32, v32, segments)
    errors = jnp.linalg.norm(out - expected, axis=-1) / jnp.linalg.norm(expected, axis=-1)
    assert errors.max() < 2e-2


@needs_amx
def test_calls_at_the_same_time_give_the_same_bits() -> None:
    x, scale = stream(512, 896)
    shapes = ((896, 1024), (896, 1024), (1024, 896))
    kernels = [amx.pack(weights(*shape, seed)) for seed, shape in enumerate(shapes)]

    def call() -> np.ndarray:
        return np.asarray(amx.mlp(x, scale, EPSILON, *kernels, dtype=FLOAT32))

    expected = call()
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(call) for _ in range(24)]
        assert all((future.result() == expected).all() for future in futures)


@needs_amx
def test_a_row_s_bits_depend_on_that_row_alone() -> None:
    """Whatever the rows beside it, and into whatever units of work they are cut."""
    x, scale = stream(1000, 896)
    kernels = [amx.pack(weights(*s, 1)) for s in ((896, 1024), (896, 1024), (1024, 896))]
    together = np.asarray(amx.mlp(x, scale, EPSILON, *kernels, dtype=FLOAT32))
    alone = np.asarray(amx.mlp(x[:, 3:90], scale, EPSILON, *kernels, dtype=FLOAT32))
    assert (alone == together[:, 3:90]).all()


def test_the_kernels_are_for_models_and_dtypes_that_they_take() -> None:
    bfloat16, float32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    small = PRESETS["Qwen2.5-0.5B"]
    assert amx.fits(small, bfloat16, 1) == amx.available()
    assert amx.fits(small, bfloat16, 2) == amx.available()  # 4864 / 2 is a multiple of 32
    assert not amx.fits(small, bfloat16, 3)
    assert not amx.fits(small, float32, 1)
    assert not amx.fits(PRESETS["tiny"], bfloat16, 1)
