"""Every form of attention computes the definition, written here in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen.attention import (
    AttentionForm,
    attention_of_slots,
    causal_attention,
    fastest_form,
    splash_attention,
)
from qwen.batching import preferred_row_length
from qwen.config import PRESETS
from qwen.ops import amx

RELATIVE_ERROR = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest relative L2 error of a query head's output; bfloat16 has 8 bits of precision."""

KEY_HEADS, GROUPS, HEAD_DIM = 2, 3, 64

Row = Sequence[int]
"""The lengths of the samples in a row; what is left of it is padding."""

LAYOUTS: dict[str, tuple[int, list[Row]]] = {
    "rows of one block": (128, [[128], [40, 60]]),
    "samples over all blocks, and across their borders": (640, [[640], [300, 211, 129]]),
    "a length that only small blocks divide": (384, [[384], [200, 184]]),
    "samples that begin where blocks do": (384, [[128, 256], [256, 128]]),
    "padding at the end, from one slot to all but one": (384, [[100, 283], [1]]),
    "a row of padding alone": (384, [[], [129, 127, 128]]),
    "many short samples": (384, [[1] * 12, [31, 1, 33] * 5]),
}

needs_amx = pytest.mark.skipif(
    not amx.available(), reason="the AMX kernels are not built, or this processor has no AMX"
)
needs_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")

FORMS_AND_DTYPES: list[object] = [
    *((form, dtype) for form in ("reference", "blocked", "splash") for dtype in RELATIVE_ERROR),
    pytest.param("amx", "bfloat16", marks=needs_amx),
    pytest.param("cudnn", "bfloat16", marks=needs_gpu),
]
"""The TPU's form runs in interpret mode elsewhere."""


@cache
def compiled(form: AttentionForm) -> Callable[..., jax.Array]:
    if form == "splash":
        interpret = jax.default_backend() != "tpu"
        return jax.jit(lambda q, k, v, s, p: splash_attention(q, k, v, s, p, interpret))
    return jax.jit(partial(causal_attention, form=form))


def segments_and_positions(length: int, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """[rows, length] int32 each."""
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
    rows: int, length: int, dtype: str, seed: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values of a trained model's size: scores of some units, so that softmax is far from flat."""
    rng = np.random.default_rng(seed)
    q = 2 * rng.standard_normal((rows, length, KEY_HEADS, GROUPS, HEAD_DIM), np.float32)
    k = rng.standard_normal((rows, length, KEY_HEADS, HEAD_DIM), np.float32)
    v = rng.standard_normal((rows, length, KEY_HEADS, HEAD_DIM), np.float32)
    return jnp.asarray(q, dtype), jnp.asarray(k, dtype), jnp.asarray(v, dtype)


def definition(q: jax.Array, k: jax.Array, v: jax.Array, rows: Sequence[Row]) -> np.ndarray:
    """[rows, length, K, G, D] float64; padding is 0."""
    query, key, value = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(query.shape)
    for row, lengths in enumerate(rows):
        start = 0
        for size in lengths:
            part = (row, slice(start, start + size))
            scores = np.einsum("qkgd,skd->kgqs", query[part], key[part]) / np.sqrt(HEAD_DIM)
            scores = np.where(np.tri(size, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[part] = np.einsum("kgqs,skd->qkgd", weights, value[part])
            start += size
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("form", "dtype"), FORMS_AND_DTYPES)
def test_a_form_computes_the_definition(form: AttentionForm, layout: str, dtype: str) -> None:
    length, rows = LAYOUTS[layout]
    q, k, v = queries_keys_values(len(rows), length, dtype)
    segments, positions = segments_and_positions(length, rows)
    out = compiled(form)(q, k, v, segments, positions)
    assert out.dtype == q.dtype
    assert out.shape == q.shape
    found, expected = np.asarray(out, np.float64), definition(q, k, v, rows)
    assert np.isfinite(found).all(), "a padding slot is not finite"
    real = segments > 0
    errors = np.linalg.norm((found - expected)[real], axis=-1)
    assert (errors / np.linalg.norm(expected[real], axis=-1)).max() <= RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("dtype", RELATIVE_ERROR)
def test_attention_of_chosen_slots_is_that_of_the_row_at_them(dtype: str) -> None:
    length, rows = LAYOUTS["samples over all blocks, and across their borders"]
    q, k, v = queries_keys_values(len(rows), length, dtype)
    segments, _ = segments_and_positions(length, rows)
    slots = np.array([[639, 1, 255, 0, 0], [299, 300, 510, 511, 5]], np.int32)
    chosen = jax.vmap(lambda row, at: row[at])(q, slots)
    found = np.asarray(
        attention_of_slots(chosen, jnp.asarray(slots), k, v, jnp.asarray(segments)), np.float64
    )
    expected = definition(q, k, v, rows)[np.arange(2)[:, None], slots]
    errors = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert errors.max() <= RELATIVE_ERROR[dtype]


@st.composite
def packed_rows(draw: st.DrawFn, length: int) -> list[int]:
    """The lengths of a row's samples, with or without padding after them."""
    lengths = draw(st.lists(st.integers(1, length), min_size=1, max_size=12))
    while sum(lengths) > length:
        lengths.pop()
    return lengths or [length]


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("reference", "float32"),
        ("blocked", "float32"),
        pytest.param("amx", "bfloat16", marks=needs_amx),
    ],
)
@settings(deadline=None, max_examples=20)
@given(rows=st.lists(packed_rows(384), min_size=2, max_size=2), data=st.data())
def test_later_tokens_and_other_samples_never_influence_a_token(
    form: AttentionForm, dtype: str, rows: list[list[int]], data: st.DataObject
) -> None:
    q, k, v = (np.array(x) for x in queries_keys_values(2, 384, dtype))
    segments, positions = segments_and_positions(384, rows)

    def attended() -> np.ndarray:
        return np.asarray(compiled(form)(q, k, v, segments, positions), np.float32)

    before = attended()
    row = data.draw(st.integers(0, 1), label="row")
    slot = data.draw(st.integers(0, sum(rows[row]) - 1), label="slot")
    start = slot - positions[row, slot]

    unseen = np.ones((2, 384), bool)
    unseen[row, start : slot + 1] = False
    for array in (q, k, v):
        array[unseen] = 50 * array[unseen][::-1] + 7
    after = attended()
    np.testing.assert_allclose(after[row, slot], before[row, slot], rtol=1e-6, atol=1e-6)

    v[row, start] += 1000
    influenced = attended()
    assert not np.allclose(influenced[row, slot], before[row, slot], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["blocked", "splash"])
def test_blocks_of_other_samples_are_skipped(form: AttentionForm) -> None:
    """A masked pair with NaN gives NaN; a pair that is never computed does not."""
    q, k, v = queries_keys_values(1, 1536, "float32")
    segments, positions = segments_and_positions(1536, [[1024, 512]])
    k, v = k.at[:, :1024].set(jnp.nan), v.at[:, :1024].set(jnp.nan)
    out = np.asarray(compiled(form)(q, k, v, segments, positions))
    assert np.isnan(out[:, :1024]).all()
    assert np.isfinite(out[:, 1024:]).all()


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "form"),
    [
        pytest.param("cpu", None, "bfloat16", "amx", marks=needs_amx),
        ("tpu", None, "bfloat16", "splash"),
        ("tpu", None, "float32", "splash"),
        ("gpu", "9.0", "bfloat16", "cudnn"),
        ("gpu", "8.0", "bfloat16", "cudnn"),
        ("gpu", "12.0", "bfloat16", "cudnn"),
        ("gpu", "9.0", "float32", "blocked"),
        ("gpu", "7.5", "bfloat16", "blocked"),
        ("gpu", "gfx942", "bfloat16", "blocked"),
        ("METAL", None, "bfloat16", "blocked"),
    ],
)
def test_each_device_has_a_form_that_it_can_run(
    platform: str, capability: str | None, dtype: str, form: AttentionForm
) -> None:
    device = SimpleNamespace(platform=platform)
    if capability is not None:
        device.compute_capability = capability
    assert fastest_form(device, jnp.dtype(dtype), PRESETS["Qwen2.5-0.5B"]) == form


@pytest.mark.parametrize(
    ("form", "slots", "length"),
    [
        ("blocked", 4096, 4096),
        ("amx", 4096, 4096),
        ("splash", 4096, 2048),
        ("splash", 512, 512),
        ("cudnn", 8192, 2048),
    ],
)
def test_rows_are_as_long_as_their_attention_runs_well(
    form: AttentionForm, slots: int, length: int
) -> None:
    assert preferred_row_length(form, slots) == length
