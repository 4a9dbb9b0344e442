"""Every form of attention computes the definition, written here in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2.attention import (
    AttentionForm,
    attention_of_slots,
    causal_attention,
    form_for_platform,
    splash_attention,
)

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

FORMS: list[object] = [
    "reference",
    "blocked",
    pytest.param("splash", id="splash in interpret mode"),
    pytest.param(
        "cudnn",
        marks=pytest.mark.skipif(
            jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU"
        ),
    ),
]


@cache
def compiled(form: AttentionForm) -> Callable[..., jax.Array]:
    if form == "splash":
        interpret = jax.default_backend() != "tpu"
        return jax.jit(lambda q, k, v, s, p: splash_attention(q, k, v, s, interpret=interpret))
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


@pytest.mark.parametrize("dtype", RELATIVE_ERROR)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
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


@pytest.mark.parametrize("form", ["reference", "blocked"])
@settings(deadline=None, max_examples=20)
@given(rows=st.lists(packed_rows(384), min_size=2, max_size=2), data=st.data())
def test_later_tokens_and_other_samples_never_influence_a_token(
    form: AttentionForm, rows: list[list[int]], data: st.DataObject
) -> None:
    q, k, v = (np.array(x) for x in queries_keys_values(2, 384, "float32"))
    segments, positions = segments_and_positions(384, rows)
    before = np.asarray(compiled(form)(q, k, v, segments, positions))
    row = data.draw(st.integers(0, 1), label="row")
    slot = data.draw(st.integers(0, sum(rows[row]) - 1), label="slot")
    start = slot - positions[row, slot]

    unseen = np.ones((2, 384), bool)
    unseen[row, start : slot + 1] = False
    for array in (q, k, v):
        array[unseen] = 50 * array[unseen][::-1] + 7
    after = np.asarray(compiled(form)(q, k, v, segments, positions))
    np.testing.assert_allclose(after[row, slot], before[row, slot], rtol=1e-6, atol=1e-6)

    v[row, start] += 1000
    influenced = np.asarray(compiled(form)(q, k, v, segments, positions))
    assert not np.allclose(influenced[row, slot], before[row, slot], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "form"),
    [("cpu", "blocked"), ("tpu", "splash"), ("gpu", "cudnn"), ("METAL", "reference")],
)
def test_each_platform_has_its_form(platform: str, form: AttentionForm) -> None:
    assert form_for_platform(platform) == form
