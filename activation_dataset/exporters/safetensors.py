"""A layer as safetensors files: its vectors as they are stored, and where each comes from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from activation_dataset.exporters.exported import Exported, new_folder
from activation_dataset.exporters.safetensors_file import Tensor, write_tensors
from activation_dataset.format import layer_folder, numpy_dtype
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import Site, hook_name, place_of

SAMPLES_FILE = "samples.jsonl"

_HOW_TO_LOAD = """\
from pathlib import Path
from safetensors import safe_open
for file in sorted(Path({out!r}).glob("*.safetensors")):
    with safe_open(file, "pt") as tensors:
        activations = tensors.get_slice("activations")   # [vectors, hidden]
        token_ids = tensors.get_tensor("token_ids")      # also samples, positions"""


def export(dataset: ActivationDataset, layer: Site, out: Path) -> Exported:
    """Writes a file for each shard, and `samples.jsonl` with the ids of the samples, in order.

    The tensors of a file are `activations`, [n, hidden] of the storage dtype, `samples` [n] int64
    (lines of samples.jsonl, from 0), `positions` [n] int64 and `token_ids` [n] int32, as `Places`
    has them. The files' metadata says what was captured and gives the layer's norms.
    """
    run, statistics = dataset.metadata.run, dataset.metadata.statistics[layer]
    metadata = {
        "model_name": run.model_name,
        "layer": str(place_of(layer)[0]),
        "hook_name": hook_name(layer),
        "pooling": run.pooling,
        "mean_norm": repr(statistics.mean_norm),
        "mean_squared_norm": repr(statistics.mean_squared_norm),
    }
    stored = numpy_dtype(run.storage_dtype)
    shards = len(dataset.metadata.shards)
    with new_folder(out) as folder:
        for shard in range(shards):
            numbers = dataset.shard_numbers(shard)
            places = dataset.locate(np.arange(numbers.start, numbers.stop))
            count = len(numbers)
            blocks = dataset.blocks(
                layer,
                dtype="bits" if run.storage_dtype == "bfloat16" else "float32",
                shard=shard,
            )
            tensors = [
                Tensor(
                    "activations",
                    stored,
                    (count, run.hidden_dim),
                    (block.values for block in blocks),
                ),
                Tensor("samples", np.dtype(np.int64), (count,), [places.samples]),
                Tensor("positions", np.dtype(np.int64), (count,), [places.positions]),
                Tensor("token_ids", np.dtype(np.int32), (count,), [places.token_ids]),
            ]
            name = f"{layer_folder(layer)}-{shard:05d}-of-{shards:05d}.safetensors"
            with open(folder / name, "wb") as stream:
                write_tensors(stream, tensors, metadata)
        with open(folder / SAMPLES_FILE, "w", encoding="utf-8") as lines:
            for sample in range(len(dataset)):
                ids = {"sample_id": dataset.sample_id(sample), "task_id": dataset.task_id(sample)}
                lines.write(json.dumps(ids) + "\n")
    return Exported(dataset.num_vectors, 0, _HOW_TO_LOAD.format(out=str(out)))
