"""The float32 kernels for AVX-512, against numpy in float64."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen2.attention import fastest_form, reference_attention
from qwen2.config import PRESETS
from qwen2.kernels import avx512

needs_avx512 = pytest.mark.skipif(
    not avx512.available(),
    reason="the AVX-512 kernels are not built, or this processor has no AVX-512",
)


def weights(rows: int, columns: int, seed: int) -> jax.Array:
    values = np.random.default_rng(seed).standard_normal((rows, columns), np.float32)
    return jnp.asarray(values / np.sqrt(np.float32(rows)))


def worst_error(found: jax.Array, expected: np.ndarray) -> float:
    """The largest relative L2 error of a row."""
    errors = np.linalg.norm(np.asarray(found, np.float64) - expected, axis=-1)
    return float((errors / np.linalg.norm(expected, axis=-1)).max())


@needs_avx512
@pytest.mark.parametrize("rows", [2, 32, 158, 1024], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize(
    ("hidden", "wide"), [(64, 32), (192, 416), (896, 4864)], ids=["small", "uneven", "Qwen2.5-0.5B"]
)
def test_the_mlp_computes_its_definition(rows: int, hidden: int, wide: int) -> None:
    x = weights(hidden, rows, 0).T * hidden**0.5
    gate, up, down = weights(hidden, wide, 1), weights(hidden, wide, 2), weights(wide, hidden, 3)
    out = jax.jit(avx512.mlp)(x.reshape(2, rows // 2, hidden), gate, up, down)
    assert out.shape == (2, rows // 2, hidden)
    assert out.dtype == jnp.float32
    x64, gate64, up64, down64 = (np.asarray(each, np.float64) for each in (x, gate, up, down))
    gates = x64 @ gate64
    expected = (gates / (1 + np.exp(-gates)) * (x64 @ up64)) @ down64
    assert worst_error(out.reshape(rows, hidden), expected) < 2e-6


@needs_avx512
def test_silu_is_right_far_from_zero() -> None:
    """A gate of -100 or 100 in one row each: 0 and the gate itself."""
    x = jnp.zeros((2, 64)).at[0, 0].set(-100).at[1, 0].set(100)
    gate = jnp.zeros((64, 32)).at[0, 0].set(1)
    up, down = gate * 0.5, gate.T
    out = np.asarray(avx512.mlp(x, gate, up, down))
    assert abs(out[0, 0]) < 1e-30
    assert out[1, 0] == 5000


@needs_avx512
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(1, 64, 64), (97, 200, 192), (512, 896, 1152)]
)
def test_a_product_is_that_of_float32(rows: int, depth: int, columns: int) -> None:
    x, kernel = weights(depth, rows, 0).T * depth**0.5, weights(depth, columns, 1)
    out = jax.jit(avx512.product)(x, kernel)
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    assert worst_error(out, expected) < 1e-6


@needs_avx512
def test_heads_of_128_dimensions() -> None:
    """As in the larger Qwen2.5 models; heads of 64 are tested with the other forms."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(2 * rng.standard_normal((1, 512, 2, 6, 128), np.float32))
    k, v = (jnp.asarray(rng.standard_normal((1, 512, 2, 128), np.float32)) for _ in range(2))
    out = avx512.attention(q, k, v, jnp.arange(512, dtype=jnp.int32)[None])
    expected = reference_attention(q, k, v, jnp.ones((1, 512), jnp.int32))
    assert worst_error(out, np.asarray(expected, np.float64)) < 1e-5


@needs_avx512
def test_calls_at_the_same_time_give_the_same_bits() -> None:
    x, gate, up = weights(512, 896, 0), weights(896, 1024, 1), weights(896, 1024, 2)
    down = weights(1024, 896, 3)
    expected = np.asarray(avx512.mlp(x, gate, up, down))
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(avx512.mlp, x, gate, up, down) for _ in range(24)]
        assert all((np.asarray(future.result()) == expected).all() for future in futures)


BITS_OF_ALL_KERNELS = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[1])])
import jax.numpy as jnp, numpy as np
from hashlib import sha256
from qwen2.kernels import avx512
assert avx512.available()
rng = np.random.default_rng(0)
array = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
x, gate, up, down = array(500, 128), array(128, 416), array(128, 416), array(416, 128)
q, k, v = array(1, 384, 2, 3, 64), array(1, 384, 2, 64), array(1, 384, 2, 64)
outs = (avx512.mlp(x, gate, up, down), avx512.product(x, array(128, 192)),
        avx512.attention(q, k, v, jnp.arange(384, dtype=jnp.int32)[None]))
print(sha256(b"".join(np.asarray(out).tobytes() for out in outs)).hexdigest())
"""


@needs_avx512
def test_the_number_of_threads_does_not_change_a_bit() -> None:
    """On one processor and on two, where there are two: XLA has a thread for each."""
    one, two = (
        subprocess.run(
            [sys.executable, "-c", BITS_OF_ALL_KERNELS, str(processors)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for processors in (1, 2)
    )
    assert one == two


def test_the_kernels_are_for_models_and_dtypes_that_they_take() -> None:
    bfloat16, float32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    small = PRESETS["Qwen2.5-0.5B"]
    assert avx512.fits(small, float32, 1) == avx512.available()
    assert avx512.fits(small, float32, 2) == avx512.available()  # 4864 / 2 is a multiple of 32
    assert not avx512.fits(small, float32, 3)
    assert not avx512.fits(small, bfloat16, 1)
    assert not avx512.fits(PRESETS["tiny"], float32, 1)


def test_without_the_kernels_the_forms_of_xla_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no compiler was at hand, and in bfloat16 where there is no AMX."""
    for kernels in ("amx", "avx512"):
        monkeypatch.setattr(f"qwen2.kernels.{kernels}.available", lambda: False)
    for dtype in (jnp.bfloat16, jnp.float32):
        form = fastest_form(jax.devices("cpu")[0], jnp.dtype(dtype), PRESETS["Qwen2.5-0.5B"])
        assert form == "blocked"
