"""The activations are those of Hugging Face transformers, at every hook point of every layer.

Every checkpoint here is written by transformers' `save_pretrained` and run by transformers' own
model, one unpadded prompt at a time. The figures are in `docs/parity.md`. `test_reference.py`
compares with stored values and needs no PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_dataset.format import POOLINGS, STORAGE_DTYPES, Pooling, StorageDtype
from activation_dataset.sites import HOOK_POINTS
from tests.qwen.comparison import RecordProperty, compare, extracted, pooled
from tests.qwen.transformers_model import transformers_model

pytestmark = pytest.mark.torch

VOCABULARY = 320

SHORT_LENGTHS = (1, 300, 2, 17, 64, 1, 127, 128, 129, 5, 511, 512, 33)
"""Up to a row of the default length: several samples in a row, full rows, several steps."""

LONG_LENGTHS = (1100,)
"""Longer than a row of the default length, so a second shape."""


def rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


GROUPED = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Case:
    """A checkpoint that transformers writes: an architecture, and a form on disk.

    Attributes:
      published: whether ``config.json`` is rewritten with the field names of the published
        Qwen2.5 checkpoints, which transformers 5 renamed.
      longer: lengths of prompts besides the short ones; each may cost a compiled shape.
    """

    name: str
    architecture: dict[str, Any]
    disk_dtype: StorageDtype = "float32"
    max_shard_size: str = "1GB"
    published: bool = False
    longer: Sequence[int] = ()


CASES = (
    Case("tied head", GROUPED | rope(1e6) | {"tie_word_embeddings": True}, longer=LONG_LENGTHS),
    Case(
        "published config, sharded, untied head, rope_theta 50,000",
        GROUPED | rope(5e4) | {"tie_word_embeddings": False},
        max_shard_size="300KB",
        published=True,
        longer=LONG_LENGTHS,
    ),
    Case(
        "sharded, bfloat16 on disk, tied head, rope_theta 500",
        GROUPED | rope(500) | {"tie_word_embeddings": True},
        disk_dtype="bfloat16",
        max_shard_size="150KB",
    ),
    Case(
        "multi-head, bfloat16 on disk, untied head, rms_norm_eps 1e-3",
        {
            "hidden_size": 48,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": False,
        }
        | rope(1e6),
        disk_dtype="bfloat16",
    ),
    Case(
        "14 query heads to 2, published config, bfloat16 on disk, tied head",
        {
            "hidden_size": 112,
            "intermediate_size": 304,
            "num_hidden_layers": 6,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        }
        | rope(1e6),
        disk_dtype="bfloat16",
        published=True,
    ),
    Case(
        "head_dim 32 where hidden / heads is 21, rope_theta 10,000",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "tie_word_embeddings": True,
        }
        | rope(1e4),
    ),
    Case(
        "head_dim 64 as in Qwen2.5-0.5B, bfloat16 on disk, tied head",
        {
            "hidden_size": 128,
            "intermediate_size": 416,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "tie_word_embeddings": True,
        }
        | rope(1e6),
        disk_dtype="bfloat16",
        longer=LONG_LENGTHS,
    ),
)


def save(case: Case, folder: Path) -> None:
    """Has transformers write the case with random weights, every bias and norm among them."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, **case.architecture))
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


@dataclass
class Checkpoint:
    """A case's folder, some prompts, and what transformers makes of them."""

    case: Case
    folder: Path
    token_ids: list[np.ndarray]
    _theirs: dict[StorageDtype, list[np.ndarray]] = field(default_factory=dict)

    def theirs(self, dtype: StorageDtype) -> list[np.ndarray]:
        """For each prompt [sites, tokens, hidden] float32."""
        if dtype not in self._theirs:
            run = transformers_model(self.folder, dtype, HOOK_POINTS)
            self._theirs[dtype] = [run(ids[None])[:, 0] for ids in self.token_ids]
        return self._theirs[dtype]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("checkpoint")
    save(case, folder)
    rng = np.random.default_rng(11)
    lengths = (*SHORT_LENGTHS, *case.longer)
    token_ids = [rng.integers(0, VOCABULARY, length, dtype=np.int32) for length in lengths]
    return Checkpoint(case, folder, token_ids)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_layer_is_that_of_transformers(
    checkpoint: Checkpoint, pooling: Pooling, dtype: StorageDtype, record_property: RecordProperty
) -> None:
    ours = extracted(checkpoint.folder, checkpoint.token_ids, pooling, dtype)
    theirs = [pooled(activations, pooling) for activations in checkpoint.theirs(dtype)]
    compare(ours, theirs, dtype, record_property)


def test_a_batch_that_transformers_pads(
    checkpoint: Checkpoint, record_property: RecordProperty
) -> None:
    token_ids = [ids for ids in checkpoint.token_ids if len(ids) <= 130]
    lengths = np.array([len(ids) for ids in token_ids])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    padded = np.zeros(mask.shape, np.int32)
    padded[mask == 1] = np.concatenate(token_ids)
    activations = transformers_model(checkpoint.folder, "float32", HOOK_POINTS)(padded, mask)
    theirs = [activations[:, row, :length] for row, length in enumerate(lengths)]
    ours = extracted(checkpoint.folder, token_ids, "none", "float32")
    compare(ours, theirs, "float32", record_property)
