"""Prompts for the benchmarks: ARC-AGI-1 training tasks with their real lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from activation_dataset.prompts import Prompt
from corpus.parse import parse_tasks
from corpus.task import Task
from corpus.template import load_template
from qwen.source import open_model
from transforms.tokenize_tasks import SampleRules, prompts_of

TRAINING = Path(__file__).parents[2] / "shared" / "data" / "arc_agi_1" / "training.json"


def arc_prompts(tasks: int | None = None, file: Path = TRAINING) -> list[np.ndarray]:
    """Return token ids, [tokens] int32 each, of evenly spaced tasks of a combined file.

    Args:
        tasks: number of tasks; None for all.
        file: path of the combined file.

    Raises:
        FileNotFoundError: if the file does not exist.
    """
    with file.open("rb") as stream:
        found = [item for item in parse_tasks(stream, file.name) if isinstance(item, Task)]
    step = max(1, len(found) // tasks) if tasks else 1
    source = open_model("random:Qwen2.5-0.5B")
    template, tokenizer = load_template("digits"), source.tokenizer()
    limit = SampleRules(source.config.max_position_embeddings, "reject")
    prompts = [
        prompt
        for task in found[::step][:tasks]
        for prompt in prompts_of(task, template, tokenizer, limit)
    ]
    return [prompt.token_ids for prompt in prompts if isinstance(prompt, Prompt)]
