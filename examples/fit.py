"""An autoencoder trained on a layer of a dataset, and judged on tasks that it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activation_dataset import ActivationDataset
from activation_dataset.exporters.safetensors_file import Tensor, write_tensors
from activation_dataset.reading.vectors import Vectors
from activation_dataset.sites import Site, hook_name
from examples.held_out import Split, read, split, training_batches
from examples.judge import codes_of, explained_by, explained_by_components
from examples.sparse_autoencoder import Settings, TopKAutoencoder, train

_EVERY = 50
# What is judged while it trains; at the end, all that was read of the held-out tasks is.
_FEW = 4096


@dataclass(frozen=True)
class Progress:
    """Where the training is.

    Attributes:
        step: steps done.
        unexplained: share of the variance of the last batches that was not explained.
        explained: share of the variance that is explained of some held-out vectors.
    """

    step: int
    unexplained: float
    explained: float


@dataclass(eq=False)
class Fit:
    """An autoencoder of a layer. Iterate it to train; then `judge` it.

        fit = Fit(ActivationDataset("demo-tokens"), 12, Settings(features=256))
        for progress in fit:
            print(progress)
        print(fit.judge())

    Attributes:
        learnt: vectors to learn from; some of them if they are many.
        judged: vectors of the held-out tasks, likewise.
        history: of the training.
    """

    dataset: ActivationDataset
    layer: Site
    settings: Settings
    split: Split = field(init=False)
    learnt: Vectors = field(init=False)
    judged: Vectors = field(init=False)
    model: TopKAutoencoder = field(init=False)
    history: list[Progress] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.split = split(self.dataset, self.settings.seed)
        self.learnt = read(self.dataset, self.layer, self.split.train)
        self.judged = read(self.dataset, self.layer, self.split.held_out)
        self.model = TopKAutoencoder(self.learnt.values.mean(axis=0), self.settings)

    def __iter__(self) -> Iterator[Progress]:
        """Trains from the start, and says now and then how it goes."""
        settings = self.settings
        batches = training_batches(
            self.dataset, self.layer, self.split.train, settings.batch_size, settings.seed
        )
        recent: list[float] = []
        for step, unexplained in enumerate(train(self.model, batches, settings), 1):
            recent.append(unexplained)
            if step % _EVERY == 0 or step == settings.steps:
                explained = explained_by(self.model, self.judged.values[:: self._stride()])
                self.history.append(Progress(step, float(np.mean(recent)), explained))
                recent.clear()
                yield self.history[-1]

    def judge(self) -> Judgement:
        """What it is worth, on the held-out tasks."""
        values = self.judged.values
        codes = codes_of(self.model, values)
        components = explained_by_components(self.learnt.values, values, self.settings.active)
        idle = np.asarray(self.model.idle[...])
        dead = int(np.sum(idle >= self.settings.idle_steps))
        return Judgement(explained_by(self.model, values), components, dead, codes)

    def save(self, path: Path) -> None:
        """Writes encoder, bias, decoder and origin as safetensors; they are for scaled vectors."""
        names = ("encoder", "bias", "decoder", "origin")
        arrays = {name: np.asarray(getattr(self.model, name)[...]) for name in names}
        tensors = [Tensor(name, each.dtype, each.shape, [each]) for name, each in arrays.items()]
        metadata = {
            "model_name": self.dataset.metadata.run.model_name,
            "hook_name": hook_name(self.layer),
            "k": str(self.settings.active),
            "normalise": "sae_lens",
        }
        with open(path, "wb") as stream:
            write_tensors(stream, tensors, metadata)

    def _stride(self) -> int:
        return max(1, len(self.judged) // _FEW)


@dataclass(frozen=True, eq=False)
class Judgement:
    """What an autoencoder is worth.

    Attributes:
        explained: share of the variance that it explains of the held-out vectors.
        by_components: what as many principal components as it has active features explain.
        dead: features that training left dead.
        codes: [vectors, features] float32, the features of the held-out vectors.
    """

    explained: float
    by_components: float
    dead: int
    codes: NDArray[np.float32]
