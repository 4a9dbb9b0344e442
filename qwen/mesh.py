"""The (data, model) mesh of the devices that run a step.

Rows are split over the data axis. Heads and the intermediate dimension of the MLP are split over
the model axis (Megatron-LM, https://arxiv.org/abs/1909.08053).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from qwen.config import ModelConfig

DATA_AXIS, MODEL_AXIS = "data", "model"


class MeshError(ValueError):
    """A mesh that does not fit the devices or the model."""


def make_mesh(shape: tuple[int, int] | None, devices: Sequence[jax.Device]) -> Mesh:
    """Make a (data, model) mesh of the first devices; by default, of all devices along data.

    Raises:
        MeshError: if there are too few devices.
    """
    data, model = shape or (len(devices), 1)
    if data < 1 or model < 1 or data * model > len(devices):
        raise MeshError(
            f"mesh_shape {data},{model} needs {data * model} devices, but this worker has "
            f"{len(devices)} ({devices[0].platform}). Choose data x model at most {len(devices)}."
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    return Mesh(grid, (DATA_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def check_mesh_fits_model(mesh: Mesh, config: ModelConfig) -> None:
    """Check that the size of the model axis divides every dimension that is split over it.

    Raises:
        MeshError: if it does not. The message names the dimension and the possible sizes.
    """
    parts = mesh.shape[MODEL_AXIS]
    sizes = {"num_attention_heads": config.num_attention_heads}
    if any(not config.kind(layer).experts for layer in range(config.num_hidden_layers)):
        sizes["intermediate_size"] = config.intermediate_size
    if config.delta is not None:
        sizes["linear_num_key_heads"] = config.delta.num_key_heads
    if config.experts is not None:
        sizes["num_experts"] = config.experts.num_experts
        if shared := config.experts.shared_intermediate_size:
            sizes["shared_expert_intermediate_size"] = shared
    heads = config.num_key_value_heads
    fitting = [
        n
        for n in range(1, config.num_attention_heads + 1)
        if all(size % n == 0 for size in sizes.values()) and (heads % n == 0 or n % heads == 0)
    ]
    if parts not in fitting:
        wrong = [f"divide {name}={size}" for name, size in sizes.items() if size % parts]
        if heads % parts and parts % heads:
            wrong.append(f"divide num_key_value_heads={heads} or be a multiple of it")
        raise MeshError(
            f"the mesh's model axis of {parts} must {' and '.join(wrong)}; possible sizes for "
            f"this model: {', '.join(map(str, fitting))}"
        )


def split_over(config: ModelConfig, parts: int) -> ModelConfig:
    """Return the config with key-value heads repeated, so that each device has one."""
    if parts <= config.num_key_value_heads:
        return config
    return replace(config, num_key_value_heads=parts)


def sum_over(x: jax.Array, axis: str, dtype: jnp.dtype) -> jax.Array:
    """Sum the float32 parts that the devices of a mesh axis hold, inside `jax.shard_map`.

    Each part is rounded to `dtype`, the model's dtype, before it goes to the other devices.
    """
    # XLA would copy the array even on a single device.
    if jax.lax.axis_size(axis) == 1:
        return x
    return jax.lax.psum(x.astype(dtype), axis).astype(jnp.float32)


def gather_over(x: jax.Array, axis: str) -> jax.Array:
    """Join the parts of the last axis that the devices of a mesh axis hold."""
    if jax.lax.axis_size(axis) == 1:
        return x
    return jax.lax.all_gather(x, axis, axis=x.ndim - 1, tiled=True)
