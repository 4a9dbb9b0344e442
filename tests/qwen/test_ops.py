"""Comparison of every set of operations with its definition in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from qwen.config import ModelConfig
from qwen.layers.attention import Attention, QueriesKeysValues, attention_of_slots
from qwen.layers.mlp import MLP
from qwen.layers.norm import RMSNorm
from qwen.layers.precision import round_to
from qwen.layers.rope import rotary_embedding
from qwen.mesh import make_mesh
from qwen.ops import amx
from qwen.ops.base import Ops
from qwen.ops.choose import choose_ops
from qwen.ops.cudnn import CudnnOps
from qwen.ops.splash import SplashOps
from qwen.ops.xla import XlaOps
from qwen.presets import PRESETS

RELATIVE_ERROR = {"float32": 1e-5, "bfloat16": 2e-2}
"""Maximum relative L2 error of a query head's output; bfloat16 has 8 bits of precision."""

KEY_HEADS, GROUPS, HEAD_DIM = 2, 3, 64

Row = Sequence[int]
"""Lengths of the samples in a row; the rest of the row is padding."""

WINDOWS = (1, 50, 129)
"""Numbers of tokens that a query sees: one, less than a block, and more than a block."""

LAYOUTS: dict[str, tuple[int, list[Row]]] = {
    "rows of one block": (128, [[128], [40, 60]]),
    "samples over all blocks, and across their borders": (640, [[640], [300, 211, 129]]),
    "samples that begin where blocks do": (384, [[128, 256], [256, 128]]),
    "padding at the end, from one slot to all but one": (384, [[100, 283], [1]]),
    "a row of padding alone": (384, [[], [129, 127, 128]]),
    "many short samples": (384, [[1] * 12, [31, 1, 33] * 5]),
}


class Definition(XlaOps):
    """Attention with all scores in memory at once, as in the highest layer."""

    def attend(self, qkv, segment_ids, positions, window):
        slots = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
        return attention_of_slots(slots, qkv, segment_ids, window)


XLA, SPLASH, AMX = XlaOps(), SplashOps(interpret=jax.default_backend() != "tpu"), amx.AmxOps()
needs_amx = pytest.mark.skipif(
    not amx.available(), reason="the AMX kernels are not built, or this processor has no AMX"
)
needs_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
ON_AMX = pytest.param(AMX, "bfloat16", marks=needs_amx, id="amx")


def named(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, Ops) else None


def run(function: Callable[..., Any], *arguments: object) -> Any:
    """Run a jitted function as in a step: inside `jax.shard_map`, here on one device."""
    mesh = make_mesh((1, 1), jax.local_devices())
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return jax.jit(mapped)(*arguments)


def segments_and_positions(length: int, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return segment ids and positions, [rows, length] int32 each."""
    segments, positions = np.zeros((2, len(rows), length), np.int32)
    for row, lengths in enumerate(rows):
        start = 0
        for index, size in enumerate(lengths):
            segments[row, start : start + size] = index + 1
            positions[row, start : start + size] = np.arange(size)
            start += size
        assert start <= length
    return segments, positions


def queries_keys_values(
    rows: int, length: int, dtype: str, head_dim: int = HEAD_DIM
) -> QueriesKeysValues:
    """Return values as large as in a trained model, for which softmax is far from uniform."""
    rng = np.random.default_rng(0)
    query, key, value = (
        jnp.asarray(scale * rng.standard_normal((rows, length, *heads, head_dim)), dtype)
        for scale, heads in ((2, (KEY_HEADS, GROUPS)), (1, (KEY_HEADS,)), (1, (KEY_HEADS,)))
    )
    return query, key, value


def definition(
    qkv: QueriesKeysValues, rows: Sequence[Row], window: int | None = None
) -> np.ndarray:
    """Compute attention by its definition, [rows, length, K, G, D] float64; padding is 0."""
    query, key, value = (np.asarray(x, np.float64) for x in qkv)
    out = np.zeros(query.shape)
    for row, lengths in enumerate(rows):
        start = 0
        for size in lengths:
            part = (row, slice(start, start + size))
            scores = np.einsum("qkgd,skd->kgqs", query[part], key[part]) / np.sqrt(query.shape[-1])
            visible = np.tri(size, dtype=bool) & ~np.tri(size, k=-(window or size), dtype=bool)
            scores = np.where(visible, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[part] = np.einsum("kgqs,skd->qkgd", weights, value[part])
            start += size
    return out


def worst_error(found: object, expected: np.ndarray) -> float:
    """Return the largest |found - expected| / |expected| along the last axis."""
    errors = np.linalg.norm(np.asarray(found, np.float64) - expected, axis=-1)
    return float((errors / np.linalg.norm(expected, axis=-1)).max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("ops", "dtype", "window"),
    [
        *((ops, dtype, None) for ops in (Definition(), XLA, SPLASH) for dtype in RELATIVE_ERROR),
        *((ops, "float32", window) for ops in (Definition(), XLA, SPLASH) for window in WINDOWS),
        pytest.param(AMX, "bfloat16", None, marks=needs_amx),
        *(
            pytest.param(CudnnOps(), "bfloat16", window, marks=needs_gpu)
            for window in (None, *WINDOWS)
        ),
    ],
    ids=named,
)
def test_attention(ops: Ops, layout: str, dtype: str, window: int | None) -> None:
    length, rows = LAYOUTS[layout]
    qkv = queries_keys_values(len(rows), length, dtype)
    segments, positions = segments_and_positions(length, rows)
    out = run(partial(ops.attend, window=window), qkv, segments, positions)
    assert (out.dtype, out.shape) == (qkv[0].dtype, qkv[0].shape)
    assert jnp.isfinite(out).all(), "a padding slot is not finite"
    real = segments > 0
    expected = definition(qkv, rows, window)
    assert worst_error(out[real], expected[real]) <= RELATIVE_ERROR[dtype]


@needs_amx
def test_attention_with_heads_of_128_dimensions() -> None:
    qkv = queries_keys_values(1, 512, "bfloat16", 128)
    out = run(partial(AMX.attend, window=None), qkv, *segments_and_positions(512, [[512]]))
    assert worst_error(out, definition(qkv, [[512]])) <= RELATIVE_ERROR["bfloat16"]


@st.composite
def packed_rows(draw: st.DrawFn, length: int) -> list[int]:
    """Draw the lengths of a row's samples, with or without padding after them."""
    lengths = draw(st.lists(st.integers(1, length), min_size=1, max_size=12))
    while sum(lengths) > length:
        lengths.pop()
    return lengths or [length]


@pytest.mark.parametrize(
    ("ops", "dtype"), [(Definition(), "float32"), (XLA, "float32"), ON_AMX], ids=named
)
@settings(deadline=None, max_examples=20)
@given(rows=st.lists(packed_rows(384), min_size=2, max_size=2), data=st.data())
def test_tokens_that_are_later_or_before_the_window_or_of_others_never_influence_a_token(
    ops: Ops, dtype: str, rows: list[list[int]], data: st.DataObject
) -> None:
    q, k, v = (np.array(x) for x in queries_keys_values(2, 384, dtype))
    segments, positions = segments_and_positions(384, rows)
    window = None if ops is AMX else data.draw(st.sampled_from([None, *WINDOWS]), label="window")
    attend = jax.jit(ops.attend, static_argnums=3)

    def attended() -> np.ndarray:
        return np.asarray(attend((q, k, v), segments, positions, window), np.float32)

    before = attended()
    row = data.draw(st.integers(0, 1), label="row")
    slot = data.draw(st.integers(0, sum(rows[row]) - 1), label="slot")
    start = slot - min(positions[row, slot], (window or 384) - 1)

    unseen = np.ones((2, 384), bool)
    unseen[row, start : slot + 1] = False
    for array in (q, k, v):
        array[unseen] = 50 * array[unseen][::-1] + 7
    np.testing.assert_allclose(attended()[row, slot], before[row, slot], rtol=1e-6, atol=1e-6)

    v[row, start] += 1000
    assert not np.allclose(attended()[row, slot], before[row, slot], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ops", [XLA, SPLASH], ids=named)
@pytest.mark.parametrize(
    ("samples", "window", "skipped", "after"),
    [([1024, 512], None, 1024, 1024), ([1536], 128, 512, 1024)],
    ids=["another sample", "before the window"],
)
def test_blocks_that_no_query_sees_are_skipped(
    ops: Ops, samples: Row, window: int | None, skipped: int, after: int
) -> None:
    """A masked pair with NaN gives NaN; a skipped pair does not."""
    q, k, v = queries_keys_values(1, 1536, "float32")
    segments, positions = segments_and_positions(1536, [samples])
    k, v = k.at[:, :skipped].set(jnp.nan), v.at[:, :skipped].set(jnp.nan)
    out = np.asarray(run(partial(ops.attend, window=window), (q, k, v), segments, positions))
    assert np.isnan(out[:, :skipped]).all()
    assert np.isfinite(out[:, after:]).all()


# The other operations, whose kernels work on blocks of 32 rows

OPS = pytest.mark.parametrize(
    ("ops", "dtype"), [(XLA, "float32"), (XLA, "bfloat16"), ON_AMX], ids=named
)
ROWS = pytest.mark.parametrize("rows", [70, 1024], ids=lambda rows: f"{rows} rows")
"""Row counts: a few blocks with a partial one, and several units of work."""

EPSILON = 1e-6


def config_of(hidden: int, head_dim: int = HEAD_DIM) -> ModelConfig:
    return replace(
        PRESETS["Qwen2.5-0.5B"],
        hidden_size=hidden,
        num_attention_heads=KEY_HEADS * GROUPS,
        num_key_value_heads=KEY_HEADS,
        head_dim=head_dim,
    )


def stream(rows: int, hidden: int, dtype: str) -> jax.Array:
    """Return a residual stream, [2, rows / 2, hidden]."""
    x = 3 * np.random.default_rng(7).standard_normal((2, rows // 2, hidden))
    return jnp.asarray(x, dtype)


def random_parameters(module: nnx.Module, ops: Ops) -> tuple[Any, dict[str, np.ndarray]]:
    """Set a module's parameters, tiled if needed; return its state and the values in float64."""
    rng, plain = np.random.default_rng(1), {}
    for name, parameter in list(vars(module).items()):
        if isinstance(parameter, nnx.Param):
            contracted = 3 if name == "out_kernel" else int(name.endswith("kernel"))
            depth = int(np.prod(parameter.shape[:contracted]))
            values = rng.standard_normal(parameter.shape) / np.sqrt(depth) + (name == "scale")
            kernel = jnp.asarray(values, parameter.dtype)
            plain[name] = np.asarray(kernel, np.float64)
            if contracted and ops.tiles_kernels:
                kernel = ops.tile_kernel(kernel.reshape(depth, -1))
            setattr(module, name, nnx.Param(kernel))
    return module, plain


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    return np.asarray(x.astype(jnp.dtype(dtype)), np.float64)


def normalized(x: jax.Array, scale: np.ndarray) -> np.ndarray:
    x64 = np.asarray(x, np.float64)
    inverse = 1 / np.sqrt((x64**2).mean(-1, keepdims=True) + EPSILON)
    return rounded(x64 * inverse * scale, str(x.dtype))


def check_update(call: Callable[[bool], Callable[..., Any]], x: jax.Array, expected: np.ndarray):
    """Check that a kept update is float32, and that keeping it does not change the stream."""
    update, after = run(call(True), x)
    assert (update.dtype, update.shape) == (jnp.float32, x.shape)
    assert worst_error(update, expected) < (3e-3 if x.dtype == jnp.bfloat16 else 1e-5)
    assert (after == (x.astype(jnp.float32) + update).astype(x.dtype)).all()
    assert (run(lambda x: call(False)(x)[1], x) == after).all()


@OPS
@pytest.mark.parametrize(
    ("rows", "hidden", "wide"), [(2, 32, 64), (1024, 96, 416), (160, 896, 4864)]
)
def test_the_mlp(ops: Ops, dtype: str, rows: int, hidden: int, wide: int) -> None:
    mlp, kernels = random_parameters(MLP(hidden, wide, jnp.dtype(dtype)), ops)
    norm, scale = random_parameters(RMSNorm(hidden, EPSILON, jnp.dtype(dtype)), ops)
    x = stream(rows, hidden, dtype)
    normed = normalized(x, scale["scale"])
    gates = normed @ kernels["gate_kernel"]
    gated = gates / (1 + np.exp(-gates)) * (normed @ kernels["up_kernel"])
    expected = rounded(gated, dtype) @ kernels["down_kernel"]
    check_update(lambda keep: lambda x: ops.add_mlp(x, norm, mlp, keep), x, expected)


@OPS
@ROWS
def test_the_output_projection(ops: Ops, dtype: str, rows: int) -> None:
    attention, kernels = random_parameters(Attention(config_of(96), jnp.dtype(dtype)), ops)
    x = stream(rows, 96, dtype)
    attended = stream(rows, 6 * HEAD_DIM, dtype).reshape(2, rows // 2, KEY_HEADS, GROUPS, HEAD_DIM)
    expected = np.einsum("rlkgd,kgdh->rlh", np.asarray(attended, np.float64), kernels["out_kernel"])
    check_update(lambda keep: lambda x: ops.add_heads(x, attended, attention, keep), x, expected)


@OPS
@ROWS
@pytest.mark.parametrize("head_dim", amx.HEAD_DIMS)
def test_queries_keys_and_values(ops: Ops, dtype: str, rows: int, head_dim: int) -> None:
    hidden, half = 96, head_dim // 2
    config = config_of(hidden, head_dim=head_dim)
    attention, parameters = random_parameters(Attention(config, jnp.dtype(dtype)), ops)
    norm, scale = random_parameters(RMSNorm(hidden, EPSILON, jnp.dtype(dtype)), ops)
    x = stream(rows, hidden, dtype)
    positions = jnp.arange(3, 3 + rows, dtype=jnp.int32).reshape(2, -1)
    rotary = rotary_embedding(positions, config)
    found = run(lambda x: ops.queries_keys_values(x, norm, attention, rotary), x)

    normed = normalized(x, scale["scale"])
    qkv = np.einsum("rlh,hkgd->rlkgd", normed, parameters["qkv_kernel"]) + parameters["qkv_bias"]
    angles = np.asarray(positions)[..., None] / config.rope_theta ** (np.arange(half) / half)
    turns = np.exp(1j * angles)[:, :, None, None] * (qkv[..., :half] + 1j * qkv[..., half:])
    rotated = np.concatenate([turns.real, turns.imag], axis=-1)
    for ours, theirs in zip(
        found, (rotated[:, :, :, :-2], rotated[:, :, :, -2], qkv[:, :, :, -1]), strict=True
    ):
        assert (ours.dtype, ours.shape) == (x.dtype, theirs.shape)
        assert worst_error(ours, theirs) < (1e-2 if dtype == "bfloat16" else 1e-4)


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "name"),
    [
        pytest.param("cpu", "", "bfloat16", "amx", marks=needs_amx),
        ("tpu", "", "float32", "splash"),
        ("gpu", "12.0", "bfloat16", "cudnn"),
        ("gpu", "9.0", "float32", "xla"),
        ("gpu", "7.5", "bfloat16", "xla"),
        ("gpu", "gfx942", "bfloat16", "xla"),
        ("METAL", "", "bfloat16", "xla"),
    ],
)
def test_each_device_has_operations_that_it_can_run(
    platform: str, capability: str, dtype: str, name: str
) -> None:
    device: Any = SimpleNamespace(platform=platform, compute_capability=capability)
    assert choose_ops(device, jnp.dtype(dtype), PRESETS["Qwen2.5-0.5B"]).name == name


# Rounding on the bits


def test_bfloat16_is_the_nearest_with_ties_to_even() -> None:
    """Cover random mantissas, ties and their neighbors, and infinities."""
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (random | 0x8000) & 0xFFFF_8000
    values = np.concatenate([random, ties, ties - 1, ties + 1, random & 0xFF80_0000])
    numbers = values.view(np.float32)[~np.isnan(values.view(np.float32))]
    with np.errstate(over="ignore"):
        expected = numbers.astype(ml_dtypes.bfloat16)
    found = np.asarray(jax.jit(round_to, static_argnums=1)(numbers, jnp.bfloat16))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


def test_nan_stays_nan() -> None:
    """Cover NaNs from bfloat16 weights and from arithmetic."""
    every_bfloat16 = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    weights = jnp.asarray(every_bfloat16[np.isnan(every_bfloat16)])

    def made(x: jax.Array) -> jax.Array:
        results = [x - x, 0 * x, jnp.exp(x) / jnp.exp(x), jnp.cos(x)]
        numbers = jnp.concatenate([*results, weights, weights * 3, -weights])
        return round_to(numbers, jnp.dtype("bfloat16"))

    found = np.asarray(jax.jit(made)(np.full(64, np.inf, np.float32)))
    assert np.isnan(found.astype(np.float32)).all()
