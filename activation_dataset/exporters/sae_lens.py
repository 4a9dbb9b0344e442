"""Export of cached activations for SAELens: a Hugging Face dataset with rows of fixed shape.

Each hook has a column. The layout follows `CacheActivationsRunner` and `ActivationsStore` of
https://github.com/decoderesearch/SAELens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from activation_dataset import exporters
from activation_dataset.exporters import Exported, ExportError, in_parts, new_folder
from activation_dataset.reading.batches import DEFAULT_WINDOW
from activation_dataset.reading.reader import ActivationDataset
from activation_dataset.sites import Site, hook_name

# SAELens copies its buffer for each read, so reads larger than its default are faster.
_READ = 128

_HOW_TO_LOAD = """\
from sae_lens.training.activations_store import ActivationsStore
store = ActivationsStore(
    model=None, dataset=None, streaming=False, cached_activations_path={out!r},
    hook_name={hook!r}, hook_head_index=None, context_size={context_size}, d_in={hidden},
    n_batches_in_buffer={contexts}, total_training_tokens={vectors},
    store_batch_size_prompts={read}, train_batch_size_tokens=4096, prepend_bos=False,
    normalize_activations="none", device="cpu", dtype="float32",
)                                # an iterator of [4096, {hidden}] tensors for SAETrainer, with
                                 # a shuffle buffer of {mixed:,} vectors
# or in LanguageModelSAERunnerConfig: use_cached_activations=True,
#     cached_activations_path={out!r}, context_size={context_size}"""


def export(
    dataset: ActivationDataset, sites: Sequence[Site], out: Path, context_size: int = 128
) -> Exported:
    """Write rows of `context_size` vectors in order, with the token ids unless pooling is "mean".

    Each site is a column, named after its hook. A row can contain vectors of several prompts.
    Vectors after the last full row are left out.

    Args:
        dataset: dataset to export.
        sites: sites to export.
        out: folder to create.
        context_size: number of vectors in a row.

    Raises:
        ExportError: if the dataset has fewer vectors than a row, or the folder exists.
        DatasetError: if a file of the dataset is not the one that metadata.json lists.
    """
    if not 1 <= context_size <= dataset.num_vectors:
        raise ExportError(
            f"--context_size is {context_size}, expected 1 to {dataset.num_vectors}, the number of "
            "vectors of a site"
        )
    datasets = exporters.required("datasets", "an export for SAELens needs the datasets library")
    run = dataset.metadata.run
    hidden = {hook_name(site): run.width(site) for site in sites}
    columns = {
        hook: datasets.Array2D((context_size, width), "float32") for hook, width in hidden.items()
    }
    if run.pooling != "mean":
        columns["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=context_size)
    features = datasets.Features(columns)
    rows = dataset.num_vectors // context_size
    rows_of_file = max(1, exporters.FILE_BYTES // (4 * context_size * sum(hidden.values())))
    files = -(-rows // rows_of_file)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    size = rows_of_file * context_size
    parts = zip(*(in_parts(dataset, site, size, "float32") for site in sites), strict=True)
    with new_folder(out, dataset, sites) as folder:
        for name, of_sites in zip(names, parts, strict=False):
            whole = len(of_sites[0]) // context_size * context_size
            values: dict[str, Any] = {
                hook: vectors.values[:whole].reshape(-1, context_size, hidden[hook])
                for hook, vectors in zip(hidden, of_sites, strict=True)
            }
            if "token_ids" in columns:
                token_ids = of_sites[0].places.token_ids[:whole]
                values["token_ids"] = token_ids.reshape(-1, context_size)
            part = folder / "part"
            datasets.Dataset.from_dict(values, features).save_to_disk(part, num_shards=1)
            (file,) = part.glob("*.arrow")
            file.rename(folder / name)
            (part / "dataset_info.json").replace(folder / "dataset_info.json")
            shutil.rmtree(part)
        (folder / "state.json").write_text(json.dumps(_state(names, dataset, [*hidden])))
    written = rows * context_size
    contexts = -(-DEFAULT_WINDOW // context_size)
    how = _HOW_TO_LOAD.format(
        out=str(out),
        hook=next(iter(hidden)),
        context_size=context_size,
        hidden=next(iter(hidden.values())),
        vectors=written,
        contexts=contexts,
        read=min(rows, _READ),
        mixed=contexts * context_size,
    )
    return Exported(written, dataset.num_vectors - written, how)


def _state(names: Sequence[str], dataset: ActivationDataset, hooks: list[str]) -> dict[str, Any]:
    """Return the content of state.json, which `datasets.load_from_disk` reads first."""
    content = f"{dataset.metadata.to_json()}{hooks}{len(names)}"
    return {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": sha256(content.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
