"""Tokens per second of the model without the job, compared with common alternatives.

Each contender runs its model in a separate process. Contenders run alternately, so other load on
the machine affects all of them equally. The results are ratios of paired runs; absolute figures are
context. All contenders capture the last-token residual stream of layers 10 to 23 of Qwen2.5-0.5B's
shape with random weights, on the same prompts. Flags select other presets of `qwen/presets` and
other layers. No contender computes layers above the highest captured layer.

    python -m benchmarks.trunk --tasks 16 --rounds 5
    python -m benchmarks.trunk --model Qwen3.5-2B --layers 0-3 --tasks 8 --rounds 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from beam_pipeline.flag_values import parse_layers
from benchmarks.prompts import arc_prompts
from benchmarks.torch_model import torch_model

Layers = tuple[int, ...]
Prompts = Sequence[np.ndarray]
Runner = Callable[[Prompts], None]


def ours(model: str, layers: Layers, dtype: str) -> Runner:
    """Return a runner of this project's extractor, with the job's settings."""
    from qwen import ActivationExtractor

    extractor = ActivationExtractor.load(
        f"random:{model}", layers, pooling="last", compute_dtype=dtype
    )

    def run(prompts: Prompts) -> None:
        for _ in extractor.extract(prompts):
            pass

    return run


def hugging_face(preset: str, layers: Layers, dtype: str, batch: int, by_length: bool) -> Runner:
    """Return a runner that loops over padded batches, with a forward hook on each layer."""
    import torch

    model = torch_model(preset, layers[-1] + 1, dtype)
    captured: dict[int, Any] = {}
    last = torch.zeros(0, dtype=torch.long)

    def hook(layer: int) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            captured[layer] = hidden[torch.arange(len(last)), last].float().numpy()

        return keep

    for layer in layers:
        model.layers[layer].register_forward_hook(hook(layer))

    def run(prompts: Prompts) -> None:
        nonlocal last
        ordered = sorted(prompts, key=len) if by_length else list(prompts)
        for start in range(0, len(ordered), batch):
            group = ordered[start : start + batch]
            longest = max(map(len, group))
            ids = torch.zeros(len(group), longest, dtype=torch.long)
            mask = torch.zeros(len(group), longest, dtype=torch.long)
            for row, prompt in enumerate(group):
                ids[row, : len(prompt)] = torch.from_numpy(prompt)
                mask[row, : len(prompt)] = 1
            last = mask.sum(1) - 1
            padded = longest != min(map(len, group))
            with torch.inference_mode():
                model(ids, attention_mask=mask if padded else None, use_cache=False)

    return run


def nnsight(preset: str, layers: Layers, dtype: str) -> Runner:
    """Return a runner that traces the same model with nnsight, one prompt at a time."""
    import torch
    from nnsight import NNsight

    model = NNsight(torch_model(preset, layers[-1] + 1, dtype))

    def run(prompts: Prompts) -> None:
        for prompt in prompts:
            ids = torch.from_numpy(prompt).long()[None]
            with torch.inference_mode(), model.trace(ids, use_cache=False):
                for layer in layers:
                    model.layers[layer].output[0][..., -1, :].save()

    return run


def transformer_lens(preset: str, layers: Layers, dtype: str) -> Runner:
    """Return a runner of the same model in TransformerLens' bridge, one prompt at a time."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    from qwen.source import open_model

    model = torch_model(preset, layers[-1] + 1, dtype, with_head=True)
    with tempfile.TemporaryDirectory() as folder:  # The bridge reads the configuration by name.
        model.config.architectures = ["Qwen2ForCausalLM"]
        model.config.save_pretrained(folder)
        tokenizer = open_model(f"random:{preset}").tokenizer()
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=tokenizer, device="cpu"
        )
    names = [f"blocks.{layer}.hook_out" for layer in layers]

    def run(prompts: Prompts) -> None:
        for prompt in prompts:
            ids = torch.from_numpy(prompt).long()[None]
            with torch.inference_mode():
                bridge.run_with_cache(ids, names_filter=names, return_type=None)

    return run


CONTENDERS: dict[str, tuple[Callable[..., Runner], tuple[Any, ...]]] = {
    "ours bf16": (ours, ("bfloat16",)),
    "ours f32": (ours, ("float32",)),
    "HF bf16, one at a time": (hugging_face, ("bfloat16", 1, False)),
    "HF bf16, batches of 8": (hugging_face, ("bfloat16", 8, False)),
    "HF bf16, by length": (hugging_face, ("bfloat16", 8, True)),
    "HF f32, one at a time": (hugging_face, ("float32", 1, False)),
    "nnsight bf16": (nnsight, ("bfloat16",)),
    "TransformerLens bf16": (transformer_lens, ("bfloat16",)),
}
NEEDS = {"nnsight bf16": "nnsight", "TransformerLens bf16": "transformer_lens"}

TARGETS = (
    ("ours bf16", "HF bf16, one at a time", 1.0),
    ("ours bf16", "HF bf16, batches of 8", 5.0),
    ("ours f32", "HF f32, one at a time", 1.2),
    ("ours bf16", "nnsight bf16", 2.0),
    ("ours bf16", "TransformerLens bf16", 6.0),
)


def serve(connection: Connection, name: str, model: str, layers: Layers) -> None:
    """Run prompts from a connection in a contender's process, and send back the seconds."""
    build, arguments = CONTENDERS[name]
    run = build(model, layers, *arguments)
    while (prompts := connection.recv()) is not None:
        started = time.perf_counter()
        run(prompts)
        connection.send(time.perf_counter() - started)


def measure(
    names: Sequence[str], prompts: Prompts, rounds: int, model: str, layers: Layers
) -> dict[str, list[float]]:
    """Return the seconds of each contender by round, without the first round, which compiles."""
    context = multiprocessing.get_context("spawn")
    connections = {}
    for name in names:
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, name, model, layers), daemon=True).start()
        connections[name] = here
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, connection in connections.items():
            connection.send(prompts)
            took = connection.recv()
            if number:
                seconds[name].append(took)
    for connection in connections.values():
        connection.send(None)
    return seconds


def report(seconds: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Return the medians of tokens/s and of the ratios of paired runs."""
    medians = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    ratios = [
        {
            "of": one,
            "to": other,
            "ratio": statistics.median(
                b / a for a, b in zip(seconds[one], seconds[other], strict=True)
            ),
            "target": target,
        }
        for one, other, target in TARGETS
        if one in seconds and other in seconds
    ]
    return {"tokens": tokens, "tokens_per_second": medians, "ratios": ratios, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="Qwen2.5-0.5B", help="preset, without `random:`")
    parser.add_argument("--layers", default="10-23")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=tuple(CONTENDERS), default=None)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = [
        name
        for name in arguments.only or CONTENDERS
        if name not in NEEDS or find_spec(NEEDS[name]) is not None
    ]
    prompts = arc_prompts(arguments.tasks)
    tokens = sum(map(len, prompts))
    print(f"{len(prompts)} prompts, {tokens} tokens, {arguments.rounds} rounds")
    layers = parse_layers([arguments.layers])
    result = report(measure(names, prompts, arguments.rounds, arguments.model, layers), tokens)
    for name, speed in result["tokens_per_second"].items():
        print(f"  {name:28} {speed:8.0f} tokens/s")
    for ratio in result["ratios"]:
        met = "met" if ratio["ratio"] >= ratio["target"] else "not met"
        print(
            f"  {ratio['of']} / {ratio['to']}: {ratio['ratio']:.2f} "
            f"(target {ratio['target']}, {met})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
