"""Comparison with Hugging Face transformers at every hook point of every layer.

Transformers writes every checkpoint with `save_pretrained` and runs it on one unpadded prompt at a
time. The figures are in `docs/parity.md`. `test_reference.py` compares with stored values and needs
no PyTorch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_dataset.format import POOLINGS, Pooling
from activation_dataset.storage_dtype import COMPUTE_DTYPES, ComputeDtype
from tests.qwen.comparison import STREAM, RecordProperty, compare, extracted, pooled
from tests.qwen.transformers_model import transformers_model

pytestmark = pytest.mark.torch

VOCABULARY = 320

LENGTHS = (1, 300, 2, 17, 64, 1, 127, 128, 129, 5, 511, 512, 33)
"""Lengths up to a row: several samples in a row, full rows and several steps."""

LONGER = 1100
"""A length above the default row length, which needs a second shape."""


@dataclass(frozen=True)
class Case:
    """A checkpoint that transformers writes: an architecture and a form on disk.

    A published `config.json` has the field names of Qwen2.5, which transformers 5 renamed.
    """

    rope_theta: float = 1e6
    hidden_size: int = 64
    intermediate_size: int = 160
    layers: int = 4
    heads: tuple[int, int] = (4, 2)
    tied: bool = True
    others: dict[str, Any] = field(default_factory=dict)
    disk_dtype: ComputeDtype = "float32"
    max_shard_size: str = "1GB"
    published: bool = False
    lengths: tuple[int, ...] = LENGTHS


CASES = {
    "tied head": Case(lengths=(*LENGTHS, LONGER)),
    "published config, sharded, untied head, rope_theta 50,000": Case(
        5e4, tied=False, max_shard_size="300KB", published=True
    ),
    "sharded, bfloat16 on disk, tied head, rope_theta 500": Case(
        500, disk_dtype="bfloat16", max_shard_size="150KB"
    ),
    "multi-head, bfloat16 on disk, untied head, rms_norm_eps 1e-3": Case(
        1e6, 48, 128, 3, (4, 4), tied=False, others={"rms_norm_eps": 1e-3}, disk_dtype="bfloat16"
    ),
    "14 query heads to 2, published config, bfloat16 on disk, tied head": Case(
        1e6, 112, 304, 6, (14, 2), disk_dtype="bfloat16", published=True
    ),
    "head_dim 32 where hidden / heads is 21, rope_theta 10,000": Case(
        1e4, 64, 96, 3, (3, 1), others={"head_dim": 32}
    ),
    "layers with a sliding window among others": Case(
        others={"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1}
    ),
    "head_dim 64 as in Qwen2.5-0.5B, bfloat16 on disk, tied head": Case(
        1e6,
        128,
        416,
        heads=(6, 2),
        others={"head_dim": 64},
        disk_dtype="bfloat16",
        lengths=(*LENGTHS, LONGER),
    ),
}


def save(case: Case, folder: Path) -> None:
    """Let transformers save the case with random weights, including every bias and norm."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=case.hidden_size,
        intermediate_size=case.intermediate_size,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads[0],
        num_key_value_heads=case.heads[1],
        tie_word_embeddings=case.tied,
        rope_parameters={"rope_type": "default", "rope_theta": case.rope_theta},
        **case.others,
    )
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.data = 1 + 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.data = noise
        else:
            parameter.data = noise * parameter.shape[1] ** -0.5
    model.to(getattr(torch, case.disk_dtype))
    model.save_pretrained(folder, max_shard_size=case.max_shard_size)
    if case.published:
        config_file = folder / "config.json"
        fields = json.loads(config_file.read_text())
        fields["rope_theta"] = fields.pop("rope_parameters")["rope_theta"]
        fields["torch_dtype"] = fields.pop("dtype")
        config_file.write_text(json.dumps(fields))


def prompts(case: Case) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, VOCABULARY, length, dtype=np.int32) for length in case.lengths]


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_layer_is_that_of_transformers(
    case: Case, dtype: ComputeDtype, tmp_path: Path, record_property: RecordProperty
) -> None:
    save(case, tmp_path)
    run, token_ids = transformers_model(tmp_path, dtype, STREAM), prompts(case)
    theirs = [run(ids[None])[:, 0] for ids in token_ids]
    for pooling in POOLINGS:

        def record(name: str, value: object, pooling: Pooling = pooling) -> None:
            record_property(f"{pooling}_{name}", value)

        ours = extracted(tmp_path, token_ids, pooling, dtype)
        compare(ours, [pooled(each, pooling) for each in theirs], dtype, record)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_batch_that_transformers_pads(
    case: Case, tmp_path: Path, record_property: RecordProperty
) -> None:
    save(case, tmp_path)
    token_ids = [ids for ids in prompts(case) if len(ids) <= 130]
    lengths = np.array([len(ids) for ids in token_ids])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    padded = np.zeros(mask.shape, np.int32)
    padded[mask == 1] = np.concatenate(token_ids)
    activations = transformers_model(tmp_path, "float32", STREAM)(padded, mask)
    theirs = [activations[:, row, :length] for row, length in enumerate(lengths)]
    compare(extracted(tmp_path, token_ids, "none", "float32"), theirs, "float32", record_property)
