"""Argument checks of the AMX kernels, and properties beyond their numerical definition."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen.config import DeltaConfig, ExpertsConfig, RopeScaling
from qwen.layers.mlp import MLP
from qwen.layers.norm import RMSNorm
from qwen.ops import amx
from qwen.presets import PRESETS
from tests.qwen.test_ops import AMX, EPSILON, needs_amx, random_parameters, run, stream

needs_library = pytest.mark.skipif(amx.register() is None, reason="the AMX kernels are not built")


def array(*shape: int, dtype: str = "bfloat16") -> jax.Array:
    return jnp.zeros(shape, dtype)


def tiled(depth: int, columns: int) -> jax.Array:
    return array(columns // 32, depth // 32, 1024)


X, SCALE, ANGLES = array(2, 64, 96), array(96), array(2, 64, 32, dtype="float32")
QUERY, KEY = array(2, 64, 2, 3, 64), array(2, 64, 2, 64)
GATE, DOWN, OUTPUT = tiled(96, 416), tiled(416, 96), tiled(6 * 64, 96)
QKV, BIAS = tiled(96, 2 * 5 * 64), array(2, 5, 64)
POSITIONS = array(2, 64, dtype="int32")
HALF, FEW = QUERY[..., :32], KEY[:, :32]

WRONG_CALLS: dict[str, tuple[list[jax.Array], list[jax.Array]]] = {
    "attention with heads of 32": ([HALF, KEY[..., :32], KEY[..., :32], POSITIONS], [HALF]),
    "attention with short keys": ([QUERY, FEW, KEY, POSITIONS], [QUERY]),
    "attention with few positions": ([QUERY, KEY, KEY, POSITIONS[:1]], [QUERY]),
    "attention with a small result": ([QUERY, KEY, KEY, POSITIONS], [QUERY[:1]]),
    "mlp with a short scale": ([X, SCALE[:64], GATE, GATE, DOWN], [X]),
    "mlp with a narrow up": ([X, SCALE, GATE, tiled(96, 384), DOWN], [X]),
    "mlp without tiles": ([X, SCALE, array(96, 416), array(96, 416), DOWN], [X]),
    "mlp with integers": ([X, SCALE, GATE, GATE, DOWN], [X.astype("int32")]),
    "output with a small kernel": ([QUERY, tiled(5 * 64, 96), X], [X]),
    "output with fewer rows of x": ([QUERY, OUTPUT, X[:1]], [X[:1]]),
    "qkv with a small kernel": ([X, SCALE, GATE, BIAS, ANGLES, ANGLES], [QUERY, KEY, KEY]),
    "qkv with few angles": ([X, SCALE, QKV, BIAS, ANGLES, ANGLES[:1]], [QUERY, KEY, KEY]),
    "qkv with a small result": ([X, SCALE, QKV, BIAS, ANGLES, ANGLES], [QUERY, KEY, FEW]),
}


@needs_library
@pytest.mark.parametrize("call", WRONG_CALLS)
def test_arrays_that_do_not_fit_are_refused(call: str) -> None:
    """Run without AMX too, because the kernels check arguments before they use its registers."""
    kernel, (arguments, results) = call.partition(" ")[0], WRONG_CALLS[call]
    attributes = {"epsilon": np.float32(EPSILON)} if kernel in ("mlp", "qkv") else {}
    shapes = tuple(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in results)
    called = jax.ffi.ffi_call(f"qwen_amx_{kernel}", shapes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        jax.block_until_ready(called(*arguments, **attributes))


def test_a_tiled_kernel_has_panels_of_32_columns_in_pairs_of_rows() -> None:
    kernel = np.arange(64 * 96, dtype=np.float32).reshape(64, 96)
    found = np.asarray(AMX.tile_kernel(jnp.asarray(kernel)))
    assert found.shape == (3, 2, 1024)
    for panel, step, half, pair, column, row in ((0, 0, 0, 0, 0, 0), (2, 1, 1, 15, 9, 1)):
        place = half * 512 + pair * 32 + column * 2 + row
        expected = kernel[32 * step + 2 * pair + row, 32 * panel + 16 * half + column]
        assert found[panel, step, place] == expected


@needs_amx
def test_silu_is_right_far_from_zero() -> None:
    """Use rows whose gates of -100 and 100 give 0 and 100."""
    bfloat16 = jnp.dtype("bfloat16")
    x = array(1, 32, 32).at[0, 0, 0].set(-1).at[0, 1, 0].set(1)
    mlp, norm = MLP(32, 32, bfloat16), RMSNorm(32, 0.0, bfloat16)
    norm.scale[...] = jnp.full(32, 32**-0.5, bfloat16)
    for name, value in (("gate_kernel", 100), ("up_kernel", 1), ("down_kernel", 1)):
        kernel = AMX.tile_kernel(array(32, 32).at[0, 0].set(value))
        setattr(mlp, name, type(mlp.up_kernel)(kernel))
    update, _ = run(lambda x: AMX.add_mlp(x, norm, mlp, True), x)
    assert abs(update[0, 0, 0]) < 1e-30
    assert update[0, 1, 0] == 100


@needs_amx
def test_a_row_s_bits_depend_on_that_row_alone_whatever_runs_at_the_same_time() -> None:
    mlp, _ = random_parameters(MLP(896, 1024, jnp.dtype("bfloat16")), AMX)
    norm, _ = random_parameters(RMSNorm(896, EPSILON, jnp.dtype("bfloat16")), AMX)
    x = stream(1000, 896, "bfloat16")

    def call(x: jax.Array) -> np.ndarray:
        return np.asarray(run(lambda x: AMX.add_mlp(x, norm, mlp, False)[1], x))

    together = call(x)
    assert (call(x[:, 3:90]) == together[:, 3:90]).all()
    with ThreadPoolExecutor(8) as threads:
        assert all((found == together).all() for found in threads.map(call, [x] * 24))


BFLOAT16, SMALL = jnp.dtype(jnp.bfloat16), PRESETS["Qwen2.5-0.5B"]


def test_the_kernels_need_the_processor() -> None:
    assert amx.fits(SMALL, BFLOAT16, 1) == amx.available()


def test_the_kernels_are_for_models_and_dtypes_that_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(amx, "available", lambda: True)
    for parts in (1, 2):  # 4864 / 2 is a multiple of 32.
        assert amx.fits(SMALL, BFLOAT16, parts)
    assert amx.fits(replace(SMALL, rope_scaling=RopeScaling("yarn", 4.0, 32_768)), BFLOAT16, 1)
    assert not amx.fits(SMALL, BFLOAT16, 3)
    assert not amx.fits(SMALL, jnp.dtype(jnp.float32), 1)
    windows = {"layer_types": ("sliding_attention",) * 24, "sliding_window": 8}
    others: tuple[dict[str, Any], ...] = (
        windows,
        {"attention_bias": False},
        {"qk_norm": True},
        {"output_gate": True},
        {"zero_centered_norms": True},
        {"rotary_dim": 16},
        {"head_dim": 32},
        {"hidden_size": 900},
        {"experts": ExpertsConfig(4, 2, 64)},
        {"delta": DeltaConfig(2, 2, 64, 64, 4), "layer_types": ("linear_attention",) * 24},
    )
    for changes in others:
        assert not amx.fits(replace(SMALL, **changes), BFLOAT16, 1), changes
