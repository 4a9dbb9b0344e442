"""A layer as SAELens' cached activations: a Hugging Face dataset on disk with rows of fixed shape.

https://github.com/decoderesearch/SAELens, `CacheActivationsRunner` and `ActivationsStore`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from activation_dataset.exporters.exported import Exported, ExportError, new_folder
from activation_dataset.reading.batches import DEFAULT_WINDOW
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.reading.vectors import Vectors
from activation_dataset.sites import Site, hook_name

_FILE_BYTES = 1 << 28

# SAELens copies its buffer for each read, so that larger ones than its default are faster.
_READ = 128

_HOW_TO_LOAD = """\
from sae_lens.training.activations_store import ActivationsStore
store = ActivationsStore(
    model=None, dataset=None, streaming=False, cached_activations_path={out!r},
    hook_name={hook!r}, hook_head_index=None, context_size={context_size}, d_in={hidden},
    n_batches_in_buffer={contexts}, total_training_tokens={vectors},
    store_batch_size_prompts={read}, train_batch_size_tokens=4096, prepend_bos=False,
    normalize_activations="none", device="cpu", dtype="float32",
)                                # an iterator of [4096, {hidden}] tensors, for SAETrainer, from
                                 # a buffer of {mixed:,} vectors
# or in LanguageModelSAERunnerConfig: use_cached_activations=True,
#     cached_activations_path={out!r}, context_size={context_size}"""


def export(dataset: ActivationDataset, layer: Site, out: Path, context_size: int = 128) -> Exported:
    """Writes rows of `context_size` vectors, in order, with their tokens unless they are means.

    A row goes on from one prompt into the next. Vectors behind the last whole row are left out.

    Raises:
        ImportError: the library `datasets`, which comes with SAELens, is not installed.
        ExportError: the context size is not 1 to the number of vectors.
    """
    if not 1 <= context_size <= dataset.num_vectors:
        raise ExportError(
            f"context_size is {context_size}, expected 1 to {dataset.num_vectors}, which is how "
            "many vectors the layer has"
        )
    datasets = _datasets()
    hook = hook_name(layer)
    hidden = dataset.metadata.run.hidden_dim
    columns = {hook: datasets.Array2D((context_size, hidden), "float32")}
    if dataset.metadata.run.pooling != "mean":
        columns["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=context_size)
    features = datasets.Features(columns)
    rows = dataset.num_vectors // context_size
    rows_of_file = max(1, _FILE_BYTES // (4 * context_size * hidden))
    files = -(-rows // rows_of_file)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    with new_folder(out) as folder:
        chunks = _chunks(dataset, layer, context_size, rows_of_file)
        for name, vectors in zip(names, chunks, strict=True):
            values: dict[str, Any] = {hook: vectors.values.reshape(-1, context_size, hidden)}
            if "token_ids" in columns:
                values["token_ids"] = vectors.places.token_ids.reshape(-1, context_size)
            part = folder / "part"
            datasets.Dataset.from_dict(values, features).save_to_disk(part, num_shards=1)
            (file,) = part.glob("*.arrow")
            file.rename(folder / name)
            (part / "dataset_info.json").replace(folder / "dataset_info.json")
            shutil.rmtree(part)
        (folder / "state.json").write_text(json.dumps(_state(names, dataset, hook)))
    vectors_written = rows * context_size
    how = _HOW_TO_LOAD.format(
        out=str(out),
        hook=hook,
        context_size=context_size,
        hidden=hidden,
        vectors=vectors_written,
        contexts=-(-DEFAULT_WINDOW // context_size),
        read=min(rows, _READ),
        mixed=-(-DEFAULT_WINDOW // context_size) * context_size,
    )
    return Exported(vectors_written, dataset.num_vectors - vectors_written, how)


def _chunks(
    dataset: ActivationDataset, layer: Site, context_size: int, rows: int
) -> Iterator[Vectors]:
    """All vectors of whole rows, in order, that many rows at a time; overwritten by the next."""
    size = rows * context_size
    values = np.empty((size, dataset.metadata.run.hidden_dim), np.float32)
    first = filled = 0
    for block in dataset.blocks(layer):
        start = 0
        while start < len(block):
            part = block.values[start : start + size - filled]
            values[filled : filled + len(part)] = part
            filled += len(part)
            start += len(part)
            if filled == size:
                yield Vectors(values, np.arange(first, first + size), dataset)
                first, filled = first + size, 0
    if filled := filled // context_size * context_size:
        yield Vectors(values[:filled], np.arange(first, first + filled), dataset)


def _state(names: Sequence[str], dataset: ActivationDataset, hook: str) -> dict[str, Any]:
    """What `datasets.load_from_disk` reads first. The fingerprint names the content."""
    content = f"{dataset.metadata.to_json()}{hook}{len(names)}"
    return {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": sha256(content.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def _datasets() -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise ImportError(
            "an export for SAELens is written by the library `datasets`: pip install datasets (it "
            "comes with sae-lens)"
        ) from error
