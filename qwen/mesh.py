"""The (data, model) mesh of devices that a step runs on.

Rows are split over the data axis; heads and the MLP's intermediate dimension over the model axis
(Megatron-LM, https://arxiv.org/abs/1909.08053).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from qwen.config import ModelConfig

DATA_AXIS, MODEL_AXIS = "data", "model"


class MeshError(ValueError):
    """A mesh that does not fit the devices or the model."""


def make_mesh(shape: tuple[int, int] | None, devices: Sequence[jax.Device]) -> Mesh:
    """Make a (data, model) mesh of the first devices; all of them along data by default.

    Raises:
      MeshError: if there are too few devices.
    """
    data, model = shape or (len(devices), 1)
    if data < 1 or model < 1 or data * model > len(devices):
        raise MeshError(
            f"mesh_shape {data},{model} needs {data * model} devices, this worker has "
            f"{len(devices)} ({devices[0].platform}). Choose data x model at most {len(devices)}."
        )
    grid = np.asarray(devices[: data * model]).reshape(data, model)
    return Mesh(grid, (DATA_AXIS, MODEL_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def check_mesh_fits_model(mesh: Mesh, config: ModelConfig) -> None:
    """Check that the model axis divides the heads and the intermediate dimension.

    Raises:
      MeshError: naming the dimension and the sizes that divide it.
    """
    parts = mesh.shape[MODEL_AXIS]
    for name in ("num_key_value_heads", "intermediate_size"):
        size = getattr(config, name)
        if size % parts:
            fitting = [n for n in range(1, config.num_key_value_heads + 1) if size % n == 0]
            raise MeshError(
                f"the mesh's model axis of {parts} does not divide {name}={size} of this model; "
                f"possible: {', '.join(map(str, fitting))}"
            )


def sum_over(x: jax.Array, axis: str) -> jax.Array:
    """Sum the parts that the devices of a mesh axis hold, inside `jax.shard_map`."""
    # XLA would copy the array even if there is one device.
    return x if jax.lax.axis_size(axis) == 1 else jax.lax.psum(x, axis)
