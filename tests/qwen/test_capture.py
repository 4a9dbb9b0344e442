"""Choice of tokens and 8-bit vectors on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.format import Pooling
from activation_dataset.storage_dtype import StorageDtype, to_float32
from qwen.batching import SampleTokens
from qwen.extractor import ActivationExtractor
from tests.activation_dataset.synthetic import stored
from tests.qwen.checkpoints import SMALL, write_checkpoint
from tests.qwen.comparison import assert_close_statistics, by_sample

LENGTHS = (40, 1, 300, 7, 512, 129, 256)
POINTS = ("q", "mlp_out", "resid_post")
CHOICES: dict[str, Sequence[np.ndarray | None]] = {
    "every:8": [np.arange(0, n, 8) for n in LENGTHS],
    "most": [np.arange(1, n) for n in LENGTHS],
    "of some samples": [None if n % 2 else np.arange(0, n, 50) for n in LENGTHS],
    "few": [np.array([n // 2]) if n > 100 else np.array([], int) for n in LENGTHS],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def samples(choice: Sequence[np.ndarray | None]) -> list[SampleTokens]:
    rng = np.random.default_rng(2)
    ids = [rng.integers(0, SMALL.vocab_size, length, dtype=np.int32) for length in LENGTHS]
    return [*map(SampleTokens, ids, choice)]


def load(
    checkpoint: Path, pooling: Pooling, storage_dtype: StorageDtype = "float32"
) -> ActivationExtractor:
    return ActivationExtractor.load(
        checkpoint,
        [0, 2],
        hook_points=POINTS,
        pooling=pooling,
        compute_dtype="float32",
        storage_dtype=storage_dtype,
        batch_size=1,
    )


@pytest.mark.parametrize("name", CHOICES)
def test_chosen_tokens_have_the_vectors_that_they_have_among_all(
    checkpoint: Path, name: str
) -> None:
    choice = CHOICES[name]
    whole = by_sample(load(checkpoint, "none"), [each.ids for each in samples(choice)])
    for sites, expected, at in zip(
        by_sample(load(checkpoint, "none"), samples(choice)), whole, choice, strict=True
    ):
        for site, vectors in sites.items():
            wanted = expected[site] if at is None else expected[site][at]
            assert vectors.shape == wanted.shape
            np.testing.assert_allclose(vectors, wanted, rtol=0, atol=2e-5)


def test_means_are_those_of_the_chosen_tokens(checkpoint: Path) -> None:
    choice = CHOICES["every:8"]
    whole = by_sample(load(checkpoint, "none"), [each.ids for each in samples(choice)])
    means = by_sample(load(checkpoint, "mean"), samples(choice))
    for sites, expected, at in zip(means, whole, choice, strict=True):
        for site, vectors in sites.items():
            wanted = expected[site][at].mean(axis=0, keepdims=True)
            np.testing.assert_allclose(vectors, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("storage_dtype", ["int8", "float8_e4m3"])
@pytest.mark.parametrize("pooling", ["last", "none"])
def test_rows_of_8_bits_are_those_of_the_definition(
    checkpoint: Path, pooling: Pooling, storage_dtype: StorageDtype
) -> None:
    ids = [each.ids for each in samples(CHOICES["most"])]
    wide = by_sample(load(checkpoint, pooling), ids)
    extractor = load(checkpoint, pooling, storage_dtype)
    for captured in extractor.extract(ids):
        for site, rows in captured.vectors.items():
            expected = stored(
                np.concatenate([wide[s][site] for s in captured.samples]), storage_dtype
            )
            assert rows.dtype == expected.dtype
            step = np.abs(to_float32(expected)).max(axis=1, keepdims=True) / 100
            # A value between two elements may round either way, because scales can differ in one
            # bit.
            different = np.abs(to_float32(rows) - to_float32(expected)) > step / 1e4
            assert different.mean() < 1e-3
            assert (np.abs(to_float32(rows) - to_float32(expected)) <= 8 * step).all()
            assert_close_statistics(captured.statistics[site], to_float32(rows))


def test_last_pooling_takes_no_choice(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="pooling 'last'"):
        list(load(checkpoint, "last").extract(samples(CHOICES["every:8"])))
