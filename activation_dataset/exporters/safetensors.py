"""Safetensors files of a site: its vectors in order, or shuffled batches for dictionary_learning.

dictionary_learning's trainSAE takes any iterable of [batch, hidden] tensors:
https://github.com/saprmarks/dictionary_learning
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset import exporters
from activation_dataset.exporters import Exported, ExportError, in_parts, new_folder
from activation_dataset.format import layer_folder
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.vectors import Dtype
from activation_dataset.sites import Site, hook_name, place_of

SAMPLES_FILE = "samples.jsonl"

_LOAD_VECTORS = """\
from pathlib import Path
from safetensors import safe_open
for file in sorted(Path({out!r}).glob("*.safetensors")):
    with safe_open(file, "pt") as tensors:
        activations = tensors.get_slice("activations")   # [vectors, hidden]
        token_ids = tensors.get_tensor("token_ids")      # also samples, positions"""

_LOAD_BATCHES = """\
from pathlib import Path
from safetensors import safe_open
def batches():
    for file in sorted(Path({out!r}).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            rows = tensors.get_slice("activations")
            for batch in range(rows.get_shape()[0]):
                yield rows[batch]                        # [{batch_size}, {hidden}] float32
data = list(batches())                                   # for trainSAE(data=data, ...)"""


def export_vectors(dataset: ActivationDataset, site: Site, out: Path) -> Exported:
    """Write all vectors in order, and `samples.jsonl` with the ids of the samples.

    The tensors of a file are `activations` [n, hidden], bfloat16 if stored so, else float32,
    `samples` [n] int64
    (lines of samples.jsonl, from 0), `positions` [n] int64 and `token_ids` [n] int32, as in
    `Places`. The metadata of each file names the model and site and gives the site's norms.
    """
    run, statistics = dataset.metadata.run, dataset.metadata.statistics[site]
    metadata = _metadata(dataset, site) | {
        "pooling": run.pooling,
        "mean_norm": repr(statistics.mean_norm),
        "mean_squared_norm": repr(statistics.mean_squared_norm),
    }
    size = max(1, exporters.FILE_BYTES // run.record_kind(site).vector_bytes)
    files = -(-dataset.num_vectors // size)
    with new_folder(out) as folder:
        dtype: Dtype = "bfloat16" if run.storage_dtype == "bfloat16" else "float32"
        for number, part in enumerate(in_parts(dataset, site, size, dtype)):
            tensors = {
                "activations": part.values,
                "samples": part.places.samples,
                "positions": part.places.positions,
                "token_ids": part.places.token_ids,
            }
            name = f"{layer_folder(site)}-{number:05d}-of-{files:05d}.safetensors"
            _save(tensors, folder / name, metadata)
        with open(folder / SAMPLES_FILE, "w", encoding="utf-8") as lines:
            for sample in range(len(dataset)):
                ids = {"sample_id": dataset.sample_id(sample), "task_id": dataset.task_id(sample)}
                lines.write(json.dumps(ids) + "\n")
    return Exported(dataset.num_vectors, 0, _LOAD_VECTORS.format(out=str(out)))


def export_batches(
    dataset: ActivationDataset, site: Site, out: Path, batch_size: int = 4096, seed: int = 0
) -> Exported:
    """Write shuffled batches; each file has one tensor, `activations` [batches, batch_size, hidden]
    float32. The vectors are not normalized: trainSAE can do that."""
    if dataset.num_vectors < batch_size:
        raise ExportError(
            f"the site has {dataset.num_vectors} vectors, too few for a batch of {batch_size}: "
            "use a smaller batch_size"
        )
    batches = dataset.batches(site, batch_size, seed=seed)
    count, hidden = len(batches), dataset.metadata.run.width(site)
    values = (batch.values for batch in batches)
    size = max(1, exporters.FILE_BYTES // (4 * batch_size * hidden))
    files = -(-count // size)
    with new_folder(out) as folder:
        for number in range(files):
            name = f"batches-{number:05d}-of-{files:05d}.safetensors"
            tensors = {"activations": np.stack(list(islice(values, size)))}
            _save(tensors, folder / name, _metadata(dataset, site) | {"seed": str(seed)})
    how = _LOAD_BATCHES.format(out=str(out), batch_size=batch_size, hidden=hidden)
    written = count * batch_size
    return Exported(written, dataset.num_vectors - written, how)


def _metadata(dataset: ActivationDataset, site: Site) -> dict[str, str]:
    return {
        "model_name": dataset.metadata.run.model_name,
        "layer": str(place_of(site)[0]),
        "hook_name": hook_name(site),
    }


def _save(tensors: Mapping[str, NDArray[Any]], path: Path, metadata: Mapping[str, str]) -> None:
    library = exporters.required("safetensors.numpy", "this export needs the library safetensors")
    # Files of `save_file` would be readable by their owner only.
    path.write_bytes(library.save(dict(tensors), metadata=dict(metadata)))
