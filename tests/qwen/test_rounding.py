from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qwen.layers.precision import round_to

SIGNS_AND_EXPONENTS = np.arange(2**9, dtype=np.uint32) << 23
MANTISSAS = np.array(
    [0, 1, 0x3F_FFFF, 0x40_0000, 0x7F_8000, 0x7F_FFFF]
    + [(last << 16) + below for last in (0, 1) for below in (0x7FFF, 0x8000, 0x8001, 0xFFFF)],
    np.uint32,
)
"""Among them the ties between two bfloat16 values, and their neighbours."""

EVERY_KIND = (SIGNS_AND_EXPONENTS[:, None] + MANTISSAS).ravel().view(np.float32)
RANDOM = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("values", [EVERY_KIND, RANDOM], ids=["every kind", "random bits"])
def test_bfloat16_is_the_nearest_with_ties_to_even(values: np.ndarray) -> None:
    numbers = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        expected = numbers.astype(ml_dtypes.bfloat16)
    found = np.asarray(jax.jit(round_to, static_argnums=1)(numbers, jnp.bfloat16))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


def test_what_is_not_a_number_stays_so() -> None:
    """Else a broken activation would be stored as if it were one.

    NaNs of bfloat16 weights, and those that arithmetic makes, are all that a model can meet: the
    lower half of their bits is 0.
    """
    every_bfloat16 = np.arange(2**16, dtype=np.uint32) << 16
    numbers = every_bfloat16.view(np.float32)
    weights = jnp.asarray(numbers[np.isnan(numbers)])

    def made(x: jax.Array) -> jax.Array:
        results = [x - x, 0 * x, jnp.exp(x) / jnp.exp(x), jnp.cos(x)]
        return round_to(
            jnp.concatenate([*results, weights, weights * 3, -weights]), jnp.dtype("bfloat16")
        )

    found = np.asarray(jax.jit(made)(np.full(64, np.inf, np.float32)))
    assert np.isnan(found.astype(np.float32)).all()
