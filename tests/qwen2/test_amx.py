"""The kernels for Intel's matrix registers, against numpy in float64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen2.attention import reference_attention
from qwen2.config import PRESETS
from qwen2.kernels import amx

needs_amx = pytest.mark.skipif(
    not amx.available(), reason="the AMX kernels are not built, or this processor has no AMX"
)


def weights(rows: int, columns: int, seed: int) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal((rows, columns)) / np.sqrt(rows)
    return jnp.asarray(values, jnp.bfloat16)


@needs_amx
@pytest.mark.parametrize("rows", [32, 160, 1024], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize(
    ("hidden", "wide"), [(32, 64), (96, 416), (896, 4864)], ids=["small", "uneven", "Qwen2.5-0.5B"]
)
def test_the_mlp_computes_its_definition(rows: int, hidden: int, wide: int) -> None:
    x = weights(hidden, rows, 0).T * jnp.bfloat16(hidden**0.5)
    gate, up, down = weights(hidden, wide, 1), weights(hidden, wide, 2), weights(wide, hidden, 3)
    out = jax.jit(amx.mlp)(x.reshape(2, rows // 2, hidden), gate, up, down)
    assert out.shape == (2, rows // 2, hidden)
    assert out.dtype == jnp.float32
    x64, gate64, up64, down64 = (np.asarray(each, np.float64) for each in (x, gate, up, down))
    gates = x64 @ gate64
    gated = gates / (1 + np.exp(-gates)) * (x64 @ up64)
    expected = gated.astype(jnp.bfloat16).astype(np.float64) @ down64
    errors = np.linalg.norm(out.reshape(rows, hidden) - expected, axis=-1)
    assert (errors / np.linalg.norm(expected, axis=-1)).max() < 1e-3


@needs_amx
def test_silu_is_right_far_from_zero() -> None:
    """A gate of -100 or 100 in one row each: 0 and the gate itself."""
    x = jnp.zeros((32, 32), jnp.bfloat16).at[0, 0].set(-100).at[1, 0].set(100)
    ones = jnp.zeros((32, 32), jnp.bfloat16).at[0, 0].set(1)
    up = jnp.zeros((32, 32), jnp.bfloat16).at[0, 0].set(0.5)
    out = np.asarray(amx.mlp(x, ones, up, ones))
    assert abs(out[0, 0]) < 1e-30
    assert out[1, 0] == 5000 - 5000 % 16  # 100 * 50 as bfloat16


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
    x, gate, up = weights(512, 896, 0), weights(896, 1024, 1), weights(896, 1024, 2)
    down = weights(1024, 896, 3)
    expected = np.asarray(amx.mlp(x, gate, up, down))
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(amx.mlp, x, gate, up, down) for _ in range(24)]
        assert all((np.asarray(future.result()) == expected).all() for future in futures)


def test_the_kernels_are_for_models_and_dtypes_that_they_take() -> None:
    bfloat16, float32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    small = PRESETS["Qwen2.5-0.5B"]
    assert amx.fits(small, bfloat16, 1) == amx.available()
    assert amx.fits(small, bfloat16, 2) == amx.available()  # 4864 / 2 is a multiple of 32
    assert not amx.fits(small, bfloat16, 3)
    assert not amx.fits(small, float32, 1)
    assert not amx.fits(PRESETS["tiny"], bfloat16, 1)
