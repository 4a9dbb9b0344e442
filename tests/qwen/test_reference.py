"""Comparison with stored activations of transformers, for environments without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from activation_dataset.format import POOLINGS, Pooling
from activation_dataset.storage_dtype import COMPUTE_DTYPES, ComputeDtype
from tests.qwen.checkpoints import SMALL, write_checkpoint
from tests.qwen.comparison import RecordProperty, compare, extracted, pooled
from tests.qwen.reference.make_reference import REFERENCE_FILE, prompts


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_stored_values_of_transformers(
    tmp_path: Path, pooling: Pooling, dtype: ComputeDtype, record_property: RecordProperty
) -> None:
    ours = extracted(write_checkpoint(tmp_path), prompts(), pooling, dtype, ["resid_post"])
    with np.load(REFERENCE_FILE) as stored:
        theirs = [stored[f"prompt_{index}"] for index in range(len(prompts()))]
    assert theirs[0].shape == (SMALL.num_hidden_layers, 1, SMALL.hidden_size)
    theirs = [pooled(activations, pooling) for activations in theirs]
    compare(ours, theirs, dtype, record_property, ["resid_post"])
