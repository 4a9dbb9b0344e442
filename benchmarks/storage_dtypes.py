"""Cost of each storage dtype: bytes, relative error, and the quality of an autoencoder.

    python -m benchmarks.storage_dtypes

The vectors come from a Qwen2 architecture with random weights, edited to have the outliers of
trained Qwen models: a few dimensions that are large at every token, and sinks, which are tokens
whose norm is 100 times the median because of a few massive dimensions. The prompts are ARC-AGI-1
training tasks. A TopK autoencoder is trained on the vectors of each dtype and evaluated on the
float32 vectors of held-out tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from activation_dataset import ActivationDataset
from activation_dataset.storage_dtype import STORAGE_DTYPES
from beam_pipeline.command import main as run_job
from benchmarks.prompts import TRAINING
from examples.fit import Fit
from examples.sparse_autoencoder import Settings
from qwen.checkpoint import SINGLE_FILE, RandomWeights
from qwen.config import ModelConfig
from qwen.families import read_config
from qwen.presets import preset_file
from qwen.source import open_model

HIDDEN, LAYERS, LAYER = 256, 8, 6
LARGE_DIMENSIONS, LARGE = (11, 90), 40.0
"""Dimensions that are large at every token, and their size in the others' standard deviations."""

MASSIVE_DIMENSIONS, SINK_NORM = (5, 133, 200), 100.0
"""Dimensions that are massive in a sink, and the norm of a sink relative to other tokens."""

SINK_TEXT = "\n\n"
SINK = 10.0
"""Multiple of the median norm above which a token is a sink."""


def write_model(folder: Path) -> None:
    """Write the checkpoint with edited weights."""
    source = open_model("random:tiny")
    fields = json.loads(preset_file("tiny").read_text())
    fields |= {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    for file in source.files.text_folder().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = read_config(fields)
    weights = RandomWeights(config, seed=0)
    tensors = {
        name: _scaled(name, weights.read(name).astype(np.float32)) for name in weights.shapes()
    }
    (sink,) = source.tokenizer()(SINK_TEXT, add_special_tokens=False)["input_ids"]
    _add_large_dimensions(tensors)
    _add_sinks(tensors, config, sink)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def _scaled(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale weights to preserve the variance of their input, and embeddings to variance 1."""
    if name.endswith(("norm.weight", "bias")):
        return values
    deviation = 0.02 if "embed" in name else 0.02 * math.sqrt(values.shape[1])
    return values / np.float32(deviation)


def _add_large_dimensions(tensors: dict[str, NDArray[np.float32]]) -> None:
    """Make the first layer's attention add a constant, which is the average of constant values."""
    layer = "model.layers.0.self_attn."
    tensors[layer + "v_proj.weight"][0] = 0
    tensors[layer + "v_proj.bias"][0] = 1
    for dimension in LARGE_DIMENSIONS:
        tensors[layer + "o_proj.weight"][dimension, 0] = LARGE


def _add_sinks(tensors: dict[str, NDArray[np.float32]], config: ModelConfig, sink: int) -> None:
    """Make a neuron of the second layer respond only to the sink, with a large update."""
    direction = tensors["model.embed_tokens.weight"][sink]
    direction = direction / np.linalg.norm(direction)
    mlp = "model.layers.1.mlp."
    tensors[mlp + "gate_proj.weight"][0] = direction
    tensors[mlp + "up_proj.weight"][0] = direction
    # The normalized residual stream has the norm sqrt(H), mostly from the large dimensions.
    answer = HIDDEN / (1 + len(LARGE_DIMENSIONS) * LARGE**2 / HIDDEN)
    norm = SINK_NORM * np.sqrt(HIDDEN + len(LARGE_DIMENSIONS) * LARGE**2)
    down = tensors[mlp + "down_proj.weight"]
    down[:, 0] = 0
    down[list(MASSIVE_DIMENSIONS), 0] = norm / answer / np.sqrt(len(MASSIVE_DIMENSIONS))


def relative_errors(values: NDArray[np.float32], exact: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the relative L2 error of each vector, [n]."""
    difference = np.linalg.norm((values - exact).astype(np.float64), axis=1)
    return difference / np.linalg.norm(exact.astype(np.float64), axis=1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage_dtypes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--max_length", type=int, default=700)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_model(model)
        datasets: dict[str, ActivationDataset] = {}
        for dtype in STORAGE_DTYPES:
            out = Path(folder) / dtype
            flags = ["--model_path", str(model), "--tasks_file", str(TRAINING)]
            flags += ["--layers_to_extract", str(LAYER), "--pooling", "none", "--no_progress"]
            flags += ["--storage_dtype", dtype, "--max_length", str(options.max_length)]
            flags += ["--compute_dtype", "float32", "--output_dir", str(out)]
            if code := run_job(flags):
                return code
            datasets[dtype] = ActivationDataset(out)
        _print_errors(datasets)
        _print_autoencoders(datasets, options.seeds, options.steps)
    return 0


def _print_errors(datasets: dict[str, ActivationDataset]) -> None:
    values = {
        dtype: np.concatenate([block.values for block in list(dataset.blocks(LAYER))])
        for dtype, dataset in datasets.items()
    }
    exact = values["float32"]
    norms = np.linalg.norm(exact, axis=1)
    sinks = norms > SINK * np.median(norms)
    others = [i for i in range(HIDDEN) if i not in LARGE_DIMENSIONS + MASSIVE_DIMENSIONS]
    print(
        f"{len(exact):,} vectors of {HIDDEN} elements, {sinks.sum():,} of sinks, whose norm is "
        f"{np.median(norms[sinks]) / np.median(norms):.0f} times the median"
    )
    print("dtype        bytes  error: median  99 %  worst  of sinks  without large dimensions")
    for dtype, found in values.items():
        errors = relative_errors(found, exact)
        usual = errors[~sinks]
        small = relative_errors(found[~sinks][:, others], exact[~sinks][:, others])
        size = datasets[dtype].metadata.run.record_kind(LAYER).vector_bytes
        print(
            f"{dtype:<12} {size:5}  {np.median(usual):.5f}  {np.quantile(usual, 0.99):.5f}  "
            f"{usual.max():.5f}  {np.median(errors[sinks]):.5f}  {np.median(small):.5f}"
        )


def _print_autoencoders(datasets: dict[str, ActivationDataset], seeds: int, steps: int) -> None:
    print("dtype         seed  explained variance (%)  dead features")
    for dtype, dataset in datasets.items():
        for seed in range(seeds):
            settings = Settings(features=1024, active=16, steps=steps, seed=seed)
            fit = Fit(dataset, LAYER, settings)
            for _ in fit:
                pass
            fit.held_out = Fit(datasets["float32"], LAYER, settings).held_out
            found = fit.evaluate()
            print(f"{dtype:<12}  {seed:4}  {100 * found.explained:22.3f}  {found.dead:13}")


if __name__ == "__main__":
    sys.exit(main())
