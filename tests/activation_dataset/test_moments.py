"""The library's moments against numpy's, bit by bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset import native
from activation_dataset.format import float32_to_bfloat16
from activation_dataset.moments import Moments, measure

pytestmark = pytest.mark.skipif(native.library is None, reason="the library is not built here")

WIDTHS = (1, 2, 7, 8, 9, 64, 127, 128, 129, 136, 257, 300, 896, 1536, 3584, 5120, 9001)
KINDS = ("normal", "biased", "one biased", "whole", "zero", "subnormal", "sparse", "huge", "nan")


def values(kind, shape, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape, np.float32)
    match kind:
        case "biased":  # most columns need float64
            rows += rng.choice(np.array([0, -5, 300], np.float32), shape[-1])
        case "one biased":
            rows[..., rng.integers(shape[-1])] += 100
        case "whole":
            rows = rng.integers(1, 9, shape).astype(np.float32)
        case "zero":
            rows = np.where(rows > 0, np.float32(0), np.float32(-0.0))
            rows[..., 0] = 1  # else the squared norms are extreme
        case "subnormal":
            rows *= np.float32(1e-39)
            rows[..., -1] = -1
        case "sparse":
            rows *= rng.random(shape) < 0.05
            rows[..., 0] = 1
        case "huge":  # only the last block
            rows[-1, -1] *= np.float32(1e20)
        case "nan":
            rows[-1, 0, -1] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32))
    return rows


def both(blocks, monkeypatch):
    """Blocks done and moments, by the library and by numpy."""
    found = []
    for library in (native.library, None):
        monkeypatch.setattr(native, "library", library)
        moments = Moments.empty(*blocks.shape)
        done = measure(blocks, moments)
        part = moments.part(0, done)
        found.append((done, part.mean.tobytes(), part.variance.tobytes(), part.squares.tobytes()))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("hidden", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_the_same_bits_as_numpy(kind, hidden, narrow, monkeypatch):
    for rows in (1, 2, 7, 8, 9, 100, 128):
        blocks = values(kind, (2, rows, hidden), rows)
        native_, numpy_ = both(float32_to_bfloat16(blocks) if narrow else blocks, monkeypatch)
        assert native_ == numpy_, rows
        assert native_[0] == (1 if kind in ("huge", "nan") else 2)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 128),
    hidden=st.integers(1, 700),
    narrow=st.booleans(),
    scale=st.integers(-44, 38),
    seed=st.integers(0, 2**32),
)
def test_the_same_bits_as_numpy_at_any_shape_and_scale(kind, rows, hidden, narrow, scale, seed):
    with np.errstate(all="ignore"):
        blocks = values(kind, (3, rows, hidden), seed) * np.float32(10.0**scale)
    with pytest.MonkeyPatch.context() as monkeypatch:
        native_, numpy_ = both(float32_to_bfloat16(blocks) if narrow else blocks, monkeypatch)
    assert native_ == numpy_
