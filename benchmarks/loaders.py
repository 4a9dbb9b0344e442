"""What trainers of sparse autoencoders load cached activations with, to be timed beside this one.

Each loader delivers shuffled batches [batch, hidden] of float32 from its own files on disk, written
by this package's exporters from the same layer, and mixes as many vectors at a time as this one
does by default. Opening is part of the time. The libraries are unchanged.

SAELens: an `ActivationsStore` on cached activations. dictionary_learning has a buffer that a model
fills, and no loader: its `ActivationBuffer` runs here with a stand-in for the model, which gives it
the activations of a safetensors file for 32 contexts of 128 tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from activation_dataset import ActivationDataset
from activation_dataset.batches import DEFAULT_WINDOW

CONTEXT = 128
Loader = Callable[[], Iterator[Any]]


def ours(path: Path, layer: int, batch: int) -> Iterator[Any]:
    """This package's."""
    return (each.values for each in ActivationDataset(path).batches(layer, batch))


def sae_lens(dataset: ActivationDataset, layer: int, batch: int, folder: Path) -> Loader:
    """SAELens' store."""
    from sae_lens.training.activations_store import ActivationsStore

    from activation_dataset.exporters.sae_lens import export
    from activation_dataset.sites import hook_name

    export(dataset, layer, folder, CONTEXT)

    def load() -> Iterator[Any]:
        return ActivationsStore(
            model=None,
            dataset=None,
            streaming=False,
            cached_activations_path=str(folder),
            hook_name=hook_name(layer),
            hook_head_index=None,
            context_size=CONTEXT,
            d_in=dataset.kind.hidden,
            n_batches_in_buffer=DEFAULT_WINDOW // CONTEXT // 8,
            total_training_tokens=dataset.num_vectors,
            store_batch_size_prompts=8,
            train_batch_size_tokens=batch,
            prepend_bos=False,
            normalize_activations="none",
            device="cpu",
            dtype="float32",
        )

    return load


def dictionary_learning(dataset: ActivationDataset, layer: int, batch: int, folder: Path) -> Loader:
    """dictionary_learning's buffer."""
    from dictionary_learning import ActivationBuffer

    from activation_dataset.exporters.dictionary_learning import export

    export(dataset, layer, folder, batch)

    def load() -> Iterator[Any]:
        model = _ModelOnDisk(folder)
        return ActivationBuffer(
            cycle(range(batch * model.batches // CONTEXT)),
            model,
            model.submodule,
            d_submodule=dataset.kind.hidden,
            n_ctxs=DEFAULT_WINDOW // CONTEXT,
            ctx_len=CONTEXT,
            refresh_batch_size=batch // CONTEXT,
            out_batch_size=batch,
        )

    return load


class _ModelOnDisk:
    """Behaves to `ActivationBuffer` as a model whose activations are in a folder of safetensors."""

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors import safe_open

        self.dtype = torch.float32
        files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        self._slices = [file.get_slice("activations") for file in files]
        self.batches = sum(each.get_shape()[0] for each in self._slices)
        self._order = cycle((each, n) for each in self._slices for n in range(each.get_shape()[0]))
        self._hidden: Any = None
        self.submodule = SimpleNamespace(
            output=SimpleNamespace(save=lambda: SimpleNamespace(value=self._hidden), stop=list)
        )
        self.inputs = SimpleNamespace(save=self._inputs)

    @contextmanager
    def trace(self, texts: list[int], **options: Any) -> Iterator[None]:
        tensor, number = next(self._order)
        rows = tensor[number]
        self._hidden = rows.reshape(-1, CONTEXT, rows.shape[-1])
        yield

    def _inputs(self) -> Any:
        import torch

        mask = torch.ones(self._hidden.shape[:2], dtype=torch.int64)
        return SimpleNamespace(value=((), {"attention_mask": mask}))


PEERS: dict[str, tuple[str, Callable[[ActivationDataset, int, int, Path], Loader]]] = {
    "SAELens": ("sae_lens", sae_lens),
    "dictionary_learning": ("dictionary_learning", dictionary_learning),
}


def installed() -> list[str]:
    """Which of the peers can be imported here."""
    return [name for name, (module, _) in PEERS.items() if find_spec(module) is not None]


def take(load: Loader, batches: int) -> None:
    """Opens a loader and has it deliver that many batches."""
    taken = sum(1 for _ in islice(load(), batches))
    if taken != batches:
        raise RuntimeError(f"the loader delivered {taken} batches, expected {batches}")
