"""Comparison with transformers for checkpoints in the forms that fine-tuning produces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.qwen.checkpoints import SMALL, varied_weights, write_checkpoint
from tests.qwen.comparison import RecordProperty, compare, extracted
from tests.qwen.transformers_model import transformers_model

pytestmark = pytest.mark.torch

Tensors = dict[str, np.ndarray]


def cast(dtype: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: array.astype(dtype) for name, array in tensors.items()}


def mixed(tensors: Tensors) -> Tensors:
    dtypes = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
    return {
        name: array.astype(dtypes[number % 4])
        for number, (name, array) in enumerate(tensors.items())
    }


def below(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        prefix + name.removeprefix("model.") if name.startswith("model.") else name: array
        for name, array in tensors.items()
    }


def with_head(**heads: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    def changed(tensors: Tensors) -> Tensors:
        others = {n.replace("__", "."): np.ones(shape, np.float32) for n, shape in heads.items()}
        return {n: array for n, array in tensors.items() if n != "lm_head.weight"} | others

    return changed


def with_buffers(tensors: Tensors) -> Tensors:
    attention = "model.layers.1.self_attn"
    return tensors | {
        f"{attention}.rotary_emb.inv_freq": np.ones(4, np.float32),
        "model.rotary_emb.inv_freq": np.ones(4, np.float32),
        f"{attention}.masked_bias": np.array(-1e4, np.float16),
        "model.position_ids": np.arange(8)[None],
    }


@dataclass(frozen=True)
class Form:
    """Differences of a checkpoint from the one that `save_pretrained` writes.

    `key_mapping` is the argument with which transformers loads it.
    """

    change: Callable[[Tensors], Tensors] = dict
    config: dict[str, Any] = field(default_factory=dict)
    key_mapping: dict[str, str] | None = None


FORMS = {
    "float16": Form(cast(np.float16)),
    "float64": Form(cast(np.float64)),
    "mixed dtypes": Form(mixed),
    "names without model.": Form(below("")),
    "model.model.": Form(below("model.model.")),
    "language_model.": Form(below("language_model."), key_mapping={r"^language_model\.": "model."}),
    "language_model.model.": Form(
        below("language_model.model."), key_mapping={r"^language_model\.": ""}
    ),
    "model.language_model.": Form(
        below("model.language_model."), key_mapping={r"^model\.language_model\.": "model."}
    ),
    "no head": Form(with_head()),
    "a score": Form(with_head(score__weight=(2, 32))),
    "a classifier": Form(with_head(classifier__weight=(2, 32), classifier__bias=(2,))),
    "a value head": Form(with_head(v_head__summary__weight=(1, 32), lm_head__weight=(64, 32))),
    "a head of its own though the config ties it": Form(config={"tie_word_embeddings": True}),
    "more layers than the config": Form(config={"num_hidden_layers": 2}),
    "buffers of old versions": Form(with_buffers),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_that_transformers_loads(
    form: Form, tmp_path: Path, record_property: RecordProperty
) -> None:
    write_checkpoint(tmp_path, SMALL, form.change(varied_weights(SMALL)), **form.config)
    token_ids = [np.arange(length, dtype=np.int32) for length in (1, 7, 40)]
    run = transformers_model(tmp_path, "float32", key_mapping=form.key_mapping)
    theirs = [run(ids[None])[:, 0] for ids in token_ids]
    ours = extracted(tmp_path, token_ids, "none", "float32", ["resid_post"])
    compare(ours, theirs, "float32", record_property, ["resid_post"], relative_error=1e-5)
