"""Export to safetensors files: vectors in order, or shuffled batches for dictionary_learning.

The function `trainSAE` of https://github.com/saprmarks/dictionary_learning accepts any iterable of
[batch, hidden] tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
for file in sorted(Path({out!r}).glob("{site}-*.safetensors")):
    with safe_open(file, "pt") as tensors:
        activations = tensors.get_slice("activations")   # [vectors, hidden]
        token_ids = tensors.get_tensor("token_ids")      # also samples, positions"""

_LOAD_BATCHES = """\
from pathlib import Path
from safetensors import safe_open
def batches():
    for file in sorted(Path({out!r}).glob("{site}-*.safetensors")):
        with safe_open(file, "pt") as tensors:
            rows = tensors.get_slice("activations")
            for batch in range(rows.get_shape()[0]):
                yield rows[batch]                        # [{batch_size}, {hidden}] float32
data = list(batches())                                   # for trainSAE(data=data, ...)"""


def export_vectors(dataset: ActivationDataset, sites: Sequence[Site], out: Path) -> Exported:
    """Write all vectors of each site in order, and `samples.jsonl` with the ids of the samples.

    Each file has the tensors `activations` [n, hidden] bfloat16 or float32, `samples` [n] int64,
    `positions` [n] int64 and `token_ids` [n] int32, as in `Places`. `activations` is bfloat16 if
    the dataset stores bfloat16. `samples` are line numbers of samples.jsonl, from 0. The metadata
    of each file has the model, the site and the mean norms of the site.

    Raises:
        ExportError: if the folder exists.
        DatasetError: if a file of the dataset is not the one that metadata.json lists.
    """
    run = dataset.metadata.run
    dtype: Dtype = "bfloat16" if run.storage_dtype == "bfloat16" else "float32"
    with new_folder(out, dataset, sites) as folder:
        for site in sites:
            statistics = dataset.metadata.statistics[site]
            metadata = _metadata(dataset, site) | {
                "pooling": run.pooling,
                "mean_norm": repr(statistics.mean_norm),
                "mean_squared_norm": repr(statistics.mean_squared_norm),
            }
            size = max(1, exporters.FILE_BYTES // run.record_kind(site).vector_bytes)
            files = -(-dataset.num_vectors // size)
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
    return Exported(
        dataset.num_vectors, 0, _LOAD_VECTORS.format(out=str(out), site=layer_folder(sites[0]))
    )


def export_batches(
    dataset: ActivationDataset,
    sites: Sequence[Site],
    out: Path,
    batch_size: int = 4096,
    seed: int = 0,
) -> Exported:
    """Write shuffled batches of each site. All sites have the same tokens in the same order.

    Each file has one tensor, `activations` [batches, batch_size, hidden] float32. The vectors are
    not normalized, because `trainSAE` can normalize them.

    Args:
        dataset: dataset to export.
        sites: sites to export.
        out: folder to create.
        batch_size: number of vectors in a batch.
        seed: seed of the shuffle.

    Raises:
        ExportError: if the dataset has fewer vectors than a batch, or the folder exists.
        DatasetError: if a file of the dataset is not the one that metadata.json lists.
    """
    if dataset.num_vectors < batch_size:
        raise ExportError(
            f"a site has {dataset.num_vectors} vectors, too few for --batch_size {batch_size}: "
            "use a smaller --batch_size"
        )
    count = dataset.num_vectors // batch_size
    with new_folder(out, dataset, sites) as folder:
        for site in sites:
            batches = dataset.batches(site, batch_size, seed=seed)
            values = (batch.values for batch in batches)
            row_bytes = 4 * batch_size * dataset.metadata.run.width(site)
            size = max(1, exporters.FILE_BYTES // row_bytes)
            files = -(-count // size)
            for number in range(files):
                name = f"{layer_folder(site)}-{number:05d}-of-{files:05d}.safetensors"
                tensors = {"activations": np.stack(list(islice(values, size)))}
                _save(tensors, folder / name, _metadata(dataset, site) | {"seed": str(seed)})
    how = _LOAD_BATCHES.format(
        out=str(out),
        site=layer_folder(sites[0]),
        batch_size=batch_size,
        hidden=dataset.metadata.run.width(sites[0]),
    )
    written = count * batch_size
    return Exported(written, dataset.num_vectors - written, how)


def _metadata(dataset: ActivationDataset, site: Site) -> dict[str, str]:
    return {
        "model_name": dataset.metadata.run.model_name,
        "layer": str(place_of(site)[0]),
        "hook_name": hook_name(site),
    }


def _save(tensors: Mapping[str, NDArray[Any]], path: Path, metadata: Mapping[str, str]) -> None:
    library = exporters.required("safetensors.numpy", "this export needs the safetensors library")
    # `save_file` would create files that only their owner can read.
    path.write_bytes(library.save(dict(tensors), metadata=dict(metadata)))
