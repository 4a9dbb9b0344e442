"""Every family in odd shapes: each site of each layer is that of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from activation_dataset.format import POOLINGS
from tests.qwen.comparison import RecordProperty, captured_sites, pooled, worst_by_hook_point
from tests.qwen.family_cases import CASES, VOCABULARY, save
from tests.qwen.transformers_model import transformers_sites

pytestmark = pytest.mark.torch

LENGTHS = (1, 300, 2, 63, 64, 65, 128, 17)
"""Two rows: samples that share a row and a chunk of the delta network, and cross chunks."""

ATTENTION_ONLY, OTHERS = 1e-5, 1e-4
"""Largest |ours - theirs| / |theirs| of a vector, L2, in float32."""


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, VOCABULARY, length, dtype=np.int32) for length in LENGTHS]


EVERY_POOLING = {
    *("qwen2, YaRN", "qwen3", "qwen3_moe, first layer dense"),
    *("qwen3_5, delta on top, half of a head rotated", "qwen3_5_moe", "llama, llama3 scaling"),
}
"""One case of each architecture; pooling follows the layers and does not depend on their shape."""


@pytest.mark.parametrize("name", CASES)
def test_every_site_is_that_of_transformers(
    name: str, tmp_path: Path, record_property: RecordProperty
) -> None:
    case = CASES[name]
    save(case, tmp_path)
    run, token_ids = transformers_sites(tmp_path, "float32"), prompts()
    theirs = [{site: value[0] for site, value in run(ids[None]).items()} for ids in token_ids]
    for pooling in POOLINGS if name in EVERY_POOLING else ("none",):
        ours = captured_sites(tmp_path, token_ids, pooling, "float32")
        assert ours[0].keys() == theirs[0].keys()
        expected = [{site: pooled(v, pooling) for site, v in each.items()} for each in theirs]
        worst = worst_by_hook_point(ours, expected)
        for point, (error, _) in worst.items():
            record_property(f"{pooling}_worst_relative_error_{point}", error)
        limit = ATTENTION_ONLY if case.exact else OTHERS
        assert max(error for error, _ in worst.values()) <= limit, worst
