"""Speed of this project's shuffled batches, relative to loaders of other libraries.

    python -m benchmarks.loaders

The benchmark needs sae-lens and dictionary-learning, which `make torch-test` installs in a separate
environment. Each loader returns shuffled batches [batch, hidden] float32 from its own files, which
this project's exporters write from the same layer, and shuffles as many vectors at a time as this
project does by default. All files are in the page cache. Epochs alternate.

SAELens uses an `ActivationsStore` on cached activations. The store copies its whole buffer for each
read, so the benchmark also measures reads larger than the default. dictionary_learning has no
loader, only a buffer that a model fills. Its `ActivationBuffer` runs with a substitute for the
model, which reads activations from a safetensors file, for 32 contexts of 128 tokens at a time.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from activation_dataset import ActivationDataset
from activation_dataset.reading.batches import DEFAULT_WINDOW
from benchmarks.paired import run_in_turn
from benchmarks.reading import BATCH, LAYER, VECTOR_BYTES, Result
from benchmarks.synthetic_dataset import prompt_lengths, write_dataset

CONTEXT = 128
READ_BY_SAELENS = 32
"""Default number of contexts that SAELens reads at a time."""


def ours(dataset: ActivationDataset, layer: int, batch: int) -> Iterator[Any]:
    """Yield batches of this project indefinitely."""
    batches = dataset.batches(layer, batch)
    while True:
        for each in batches:
            yield each.values


def sae_lens(
    dataset: ActivationDataset, layer: int, batch: int, folder: Path, read: int = READ_BY_SAELENS
) -> Iterator[Any]:
    """Return SAELens' store, which reads `read` contexts of `CONTEXT` tokens at a time."""
    from sae_lens.training.activations_store import ActivationsStore

    from activation_dataset.exporters.sae_lens import export
    from activation_dataset.sites import hook_name

    export(dataset, [layer], folder, CONTEXT)
    return ActivationsStore(
        model=None,
        dataset=None,
        streaming=False,
        cached_activations_path=str(folder),
        hook_name=hook_name(layer),
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=dataset.metadata.run.hidden_dim,
        n_batches_in_buffer=DEFAULT_WINDOW // CONTEXT,
        total_training_tokens=dataset.num_vectors,
        store_batch_size_prompts=read,
        train_batch_size_tokens=batch,
        prepend_bos=False,
        normalize_activations="none",
        device="cpu",
        dtype="float32",
    )


def dictionary_learning(
    dataset: ActivationDataset, layer: int, batch: int, folder: Path
) -> Iterator[Any]:
    """Return dictionary_learning's buffer."""
    from dictionary_learning import ActivationBuffer

    from activation_dataset.exporters.safetensors import export_batches

    export_batches(dataset, [layer], folder, batch)
    model = _ModelOnDisk(folder)
    return ActivationBuffer(
        cycle([""]),
        model,
        model.submodule,
        d_submodule=dataset.metadata.run.hidden_dim,
        n_ctxs=DEFAULT_WINDOW // CONTEXT,
        ctx_len=CONTEXT,
        refresh_batch_size=batch // CONTEXT,
        out_batch_size=batch,
    )


class _ModelOnDisk:
    """Substitute for a model; it reads activations from a folder of safetensors files."""

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors import safe_open

        self.dtype = torch.float32
        files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        slices = [file.get_slice("activations") for file in files]
        self._order = cycle((each, n) for each in slices for n in range(each.get_shape()[0]))
        self._hidden: Any = None
        self.submodule = SimpleNamespace(
            output=SimpleNamespace(save=lambda: SimpleNamespace(value=self._hidden), stop=list)
        )
        self.inputs = SimpleNamespace(save=self._inputs)

    @contextmanager
    def trace(self, texts: list[str], **options: Any) -> Iterator[None]:
        tensor, number = next(self._order)
        rows = tensor[number]
        self._hidden = rows.reshape(-1, CONTEXT, rows.shape[-1])
        yield

    def _inputs(self) -> Any:
        import torch

        mask = torch.ones(self._hidden.shape[:2], dtype=torch.int64)
        return SimpleNamespace(value=((), {"attention_mask": mask}))


PEERS: dict[str, Callable[[ActivationDataset, int, int, Path], Iterator[Any]]] = {
    "SAELens": sae_lens,
    "SAELens, 256 contexts at a time": partial(sae_lens, read=256),
    "dictionary_learning": dictionary_learning,
}


def side_by_side(name: str, dataset: ActivationDataset, folder: Path, rounds: int) -> Result:
    """Compare an epoch of shuffled batches with the same number of batches of a peer."""
    batches = dataset.num_vectors // BATCH
    mine = ours(dataset, LAYER, BATCH)
    other = PEERS[name](dataset, LAYER, BATCH, folder)
    pairs = run_in_turn(lambda: take(mine, batches), lambda: take(other, batches), rounds)
    gigabytes = 4 * dataset.metadata.run.hidden_dim * BATCH * batches / 1e9
    return Result(name, 10.0, gigabytes, pairs)


def take(loader: Iterator[Any], batches: int) -> None:
    """Take a number of batches from a loader."""
    for _ in islice(loader, batches):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the layer files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="temporary folder (default: /tmp)")
    arguments = parser.parse_args()
    print(f"speed of shuffled batches of {BATCH} relative to others, {arguments.gigabytes} GB")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        tokens = int(arguments.gigabytes * 1e9 / 4 / VECTOR_BYTES)
        shards = [prompt_lengths(tokens, shard) for shard in range(4)]
        write_dataset(folder / "dataset", shards, [LAYER], "none", "bfloat16")
        dataset = ActivationDataset(folder / "dataset")
        for number, peer in enumerate(PEERS):
            export = folder / str(number)
            print(side_by_side(peer, dataset, export, arguments.rounds), flush=True)
            shutil.rmtree(export)


if __name__ == "__main__":
    main()
