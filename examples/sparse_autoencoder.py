"""TopK sparse autoencoder in JAX and Flax, after Gao et al. 2024 (arxiv.org/abs/2406.04093)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray


@dataclass(frozen=True)
class Settings:
    """Settings of the training.

    Attributes:
        features: number of features of the dictionary.
        active: number of active features of a vector, the k of TopK.
        steps: number of training steps.
        batch_size: number of vectors in a batch.
        learning_rate: peak learning rate of Adam, after a tenth of the steps; it decays to 0.
        idle_steps: number of steps without activity after which a feature is dead.
        revival: weight of the loss that trains dead features on the error of the active features.
        seed: seed of the initial weights and of the order of the vectors.

    Raises:
        ValueError: if `active` is not in 1..features.
    """

    features: int
    active: int = 8
    steps: int = 1000
    batch_size: int = 1024
    learning_rate: float = 3e-3
    idle_steps: int = 50
    revival: float = 1 / 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.features:
            raise ValueError(f"active is {self.active}, expected 1 to features = {self.features}")


class TopKAutoencoder(nnx.Module):
    """Autoencoder that represents each vector as a sparse sum of learned directions.

    Attributes:
        active: number of active features of a vector.
        encoder: [hidden, features] float32, initially the transposed decoder.
        bias: [features] float32.
        decoder: [features, hidden] float32, directions of length 1.
        origin: [hidden] float32, added to each sum, initially the mean of the data.
        idle: [features] int32, number of steps since each feature was last active.
    """

    def __init__(self, mean: NDArray[np.float32], settings: Settings) -> None:
        self.active = settings.active
        key = jax.random.key(settings.seed)
        decoder = unit_rows(jax.random.normal(key, (settings.features, len(mean))))
        self.encoder = nnx.Param(decoder.T)
        self.bias = nnx.Param(jnp.zeros(settings.features))
        self.decoder = nnx.Param(decoder)
        self.origin = nnx.Param(jnp.asarray(mean))
        self.idle = nnx.Variable(jnp.zeros(settings.features, jnp.int32))

    def responses(self, vectors: jax.Array) -> jax.Array:
        """Return the activity of each feature before TopK, [n, features], at least 0."""
        return nnx.relu((vectors - self.origin[...]) @ self.encoder[...] + self.bias[...])

    def encode(self, vectors: jax.Array) -> jax.Array:
        """Return the codes, [n, features], with at most `active` nonzero elements in a row."""
        return strongest(self.responses(vectors), self.active)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Return the vectors [n, hidden] of codes [n, features]."""
        return codes @ self.decoder[...] + self.origin[...]


def strongest(values: jax.Array, count: int) -> jax.Array:
    """Keep the `count` largest elements of each row and set the others to 0.

    The function finds one maximum at a time. On a CPU, `jax.lax.top_k` sorts whole rows, which
    takes ten times as long as the rest of a training step.

    Args:
        values: [n, features] float32, at least 0.
        count: number of elements to keep.
    """
    fixed = jax.lax.stop_gradient(values)

    def lower(_: int, bound: jax.Array) -> jax.Array:
        return jnp.max(fixed, axis=1, keepdims=True, where=fixed < bound, initial=0)

    bound = jax.lax.fori_loop(0, count, lower, jnp.full((len(values), 1), jnp.inf))
    return jnp.where(fixed >= bound, values, 0)


def unit_rows(rows: jax.Array) -> jax.Array:
    """Scale rows to length 1."""
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def loss_of(
    model: TopKAutoencoder, vectors: jax.Array, settings: Settings
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Compute the loss of a batch.

    Args:
        model: the autoencoder.
        vectors: [batch_size, hidden] float32.
        settings: settings of the training.

    Returns:
        The loss, and a pair of the unexplained share of the variance and [features] bool, True for
        active features.
    """
    responses = model.responses(vectors)
    codes = strongest(responses, settings.active)
    rest = vectors - model.decode(codes)
    dead = model.idle[...] >= settings.idle_steps
    revived = strongest(jnp.where(dead, responses, 0), vectors.shape[1] // 2)
    missed = jax.lax.stop_gradient(rest) - revived @ model.decoder[...]
    variance = jnp.sum(jnp.var(vectors, axis=0))
    unexplained = jnp.mean(jnp.sum(rest**2, axis=1)) / variance
    revival = jnp.mean(jnp.sum(missed**2, axis=1)) / variance
    return unexplained + settings.revival * revival, (unexplained, jnp.any(codes > 0, axis=0))


def train(
    model: TopKAutoencoder, batches: Iterable[jax.Array], settings: Settings
) -> Iterator[float]:
    """Train the autoencoder.

    Args:
        model: the autoencoder, which is updated in place.
        batches: at least `settings.steps` batches, each [batch_size, hidden] float32.
        settings: settings of the training.

    Yields:
        For each step, the unexplained share of the variance of the batch before the update.
    """
    warmup = max(1, settings.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0, settings.learning_rate, warmup, max(settings.steps, warmup + 1)
    )
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)

    @nnx.jit
    def step(
        model: TopKAutoencoder, optimizer: nnx.Optimizer[TopKAutoencoder], vectors: jax.Array
    ) -> jax.Array:
        gradient = nnx.grad(loss_of, has_aux=True)
        gradients, (unexplained, active) = gradient(model, vectors, settings)
        optimizer.update(model, gradients)
        model.decoder[...] = unit_rows(model.decoder[...])
        model.idle[...] = jnp.where(active, 0, model.idle[...] + 1)
        return unexplained

    for _, vectors in zip(range(settings.steps), batches, strict=False):
        yield float(step(model, optimizer, vectors))
