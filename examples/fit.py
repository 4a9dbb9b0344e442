"""Training of an autoencoder on one site of a dataset, and evaluation on held-out tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from safetensors.numpy import save

from activation_dataset import ActivationDataset
from activation_dataset.reading.vectors import Vectors
from activation_dataset.sites import Site, hook_name
from examples.held_out import Split, read, split, training_batches
from examples.sparse_autoencoder import Settings, TopKAutoencoder, train

_EVERY = 50
# Number of held-out vectors for evaluation during training. `Fit.evaluate` uses all of them.
_FEW = 4096
_ROWS = 4096

_encode = nnx.jit(TopKAutoencoder.encode)


@dataclass(frozen=True)
class Progress:
    """Progress of the training.

    Attributes:
        step: number of completed steps.
        unexplained: unexplained share of the variance of the last batches.
        explained: explained variance of some held-out vectors.
    """

    step: int
    unexplained: float
    explained: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Evaluation on held-out vectors.

    Attributes:
        explained: explained variance.
        by_components: variance explained by as many principal components as active features.
        dead: number of dead features at the end of the training.
        codes: [vectors, features] float32, codes of the held-out vectors.
    """

    explained: float
    by_components: float
    dead: int
    codes: NDArray[np.float32]


@dataclass(eq=False)
class Fit:
    """Training of an autoencoder on one site.

    Iterate to train, then call `evaluate`::

        fit = Fit(ActivationDataset("demo-tokens"), 12, Settings(features=256))
        for progress in fit:
            print(progress)
        print(fit.evaluate())

    Attributes:
        dataset: dataset to train on.
        site: site to train on.
        settings: settings of the training.
        split: training vectors and held-out vectors.
        training: the first training vectors, see `read`.
        held_out: the first held-out vectors, see `read`.
        model: the autoencoder.
        history: progress of the training.
    """

    dataset: ActivationDataset
    site: Site
    settings: Settings
    split: Split = field(init=False)
    training: Vectors = field(init=False)
    held_out: Vectors = field(init=False)
    model: TopKAutoencoder = field(init=False)
    history: list[Progress] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.split = split(self.dataset, self.settings.seed)
        self.training = read(self.dataset, self.site, self.split.train)
        self.held_out = read(self.dataset, self.site, self.split.held_out)
        self.model = TopKAutoencoder(self.training.values.mean(axis=0), self.settings)

    def __iter__(self) -> Iterator[Progress]:
        """Train the autoencoder, and yield the progress every 50 steps."""
        settings = self.settings
        batches = training_batches(
            self.dataset, self.site, self.split.train, settings.batch_size, settings.seed
        )
        some = self.held_out.values[:: max(1, len(self.held_out) // _FEW)]
        recent: list[float] = []
        for step, unexplained in enumerate(train(self.model, batches, settings), 1):
            recent.append(unexplained)
            if step % _EVERY == 0 or step == settings.steps:
                explained = explained_variance(some, self._decode(self._codes(some)))
                self.history.append(Progress(step, float(np.mean(recent)), explained))
                recent.clear()
                yield self.history[-1]

    def evaluate(self) -> Evaluation:
        """Evaluate the autoencoder on the held-out tasks."""
        values = self.held_out.values
        codes = self._codes(values)
        components = explained_by_components(self.training.values, values, self.settings.active)
        dead = int(np.sum(np.asarray(self.model.idle[...]) >= self.settings.idle_steps))
        explained = explained_variance(values, self._decode(codes))
        return Evaluation(explained, components, dead, codes)

    def save(self, path: Path) -> None:
        """Write encoder, bias, decoder and origin to a safetensors file.

        The weights apply to vectors that are normalized with "sae_lens".
        """
        names = ("encoder", "bias", "decoder", "origin")
        tensors = {name: np.asarray(getattr(self.model, name)[...]) for name in names}
        metadata = {
            "model_name": self.dataset.metadata.run.model_name,
            "hook_name": hook_name(self.site),
            "k": str(self.settings.active),
            "normalize": "sae_lens",
        }
        path.write_bytes(save(tensors, metadata))

    def _codes(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the codes [n, features] of vectors [n, hidden]."""
        parts = (vectors[start : start + _ROWS] for start in range(0, len(vectors), _ROWS))
        return np.concatenate([np.asarray(_encode(self.model, jnp.asarray(p))) for p in parts])

    def _decode(self, codes: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.model.decode(jnp.asarray(codes)))


def explained_variance(vectors: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
    """Return the explained variance, 1 - sum of |x - x'|^2 / sum of |x - mean|^2.

    Args:
        vectors: [n, hidden] float32, the vectors x.
        decoded: [n, hidden] float32, the reconstructions x'.
    """
    variance = np.sum((vectors - vectors.mean(axis=0)) ** 2, dtype=np.float64)
    return 1 - float(np.sum((vectors - decoded) ** 2, dtype=np.float64) / variance)


def explained_by_components(
    train: NDArray[np.float32], held_out: NDArray[np.float32], count: int
) -> float:
    """Return the variance of `held_out` that the first principal components of `train` explain.

    The principal components are the best `count` directions shared by all vectors of `train`.
    """
    mean = train.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(train, rowvar=False))
    first = directions[:, -count:].astype(np.float32)
    return explained_variance(held_out, (held_out - mean) @ first @ first.T + mean)
