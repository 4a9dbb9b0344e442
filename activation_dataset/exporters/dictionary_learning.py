"""A layer as batches for dictionary_learning, whose trainSAE takes any iterable of [B, d] tensors.

https://github.com/saprmarks/dictionary_learning
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from activation_dataset.exporters.exported import Exported, ExportError, new_folder
from activation_dataset.exporters.safetensors_file import Tensor, write_tensors
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import Site, hook_name, place_of

_FILE_BYTES = 1 << 28

_HOW_TO_LOAD = """\
from pathlib import Path
from safetensors import safe_open
def batches():
    for file in sorted(Path({out!r}).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            rows = tensors.get_slice("activations")
            for batch in range(rows.get_shape()[0]):
                yield rows[batch]                        # [{batch_size}, {hidden}] float32
data = list(batches())                                   # for trainSAE(data=data, ...)"""


def export(
    dataset: ActivationDataset, layer: Site, out: Path, batch_size: int = 4096, seed: int = 0
) -> Exported:
    """Writes shuffled batches to safetensors files, each of one tensor `activations`, [batches,
    batch_size, hidden] float32, not normalised (trainSAE does that on request).

    Raises:
        ExportError: there are fewer vectors than one batch takes.
    """
    if dataset.num_vectors < batch_size:
        raise ExportError(
            f"the layer has {dataset.num_vectors} vectors, too few for a batch of {batch_size}: "
            "ask for a smaller batch_size"
        )
    batches = dataset.batches(layer, batch_size, seed=seed)
    count = len(batches)
    hidden = dataset.metadata.run.hidden_dim
    in_a_file = max(1, _FILE_BYTES // (4 * batch_size * hidden))
    metadata = {
        "model_name": dataset.metadata.run.model_name,
        "layer": str(place_of(layer)[0]),
        "hook_name": hook_name(layer),
        "seed": str(seed),
    }
    values = (batch.values for batch in batches)
    with new_folder(out) as folder:
        starts = range(0, count, in_a_file)
        for number, start in enumerate(starts):
            length = min(in_a_file, count - start)
            name = f"batches-{number:05d}-of-{len(starts):05d}.safetensors"
            tensor = Tensor(
                "activations",
                np.dtype(np.float32),
                (length, batch_size, hidden),
                islice(values, length),
            )
            with open(folder / name, "wb") as stream:
                write_tensors(stream, [tensor], metadata)
    how = _HOW_TO_LOAD.format(out=str(out), batch_size=batch_size, hidden=hidden)
    written = count * batch_size
    return Exported(written, dataset.num_vectors - written, how)
