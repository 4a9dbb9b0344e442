"""The compiled programs that take a step through the model, on a (data, model) mesh.

One program serves all layers but the top one, so a new shape costs three small compilations
whatever the depth of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from activation_dataset.format import Pooling
from activation_dataset.sites import HookPoint, Site, site_of
from qwen.attention import AttentionForm
from qwen.batching import StepInputs, StepShape
from qwen.config import ModelConfig
from qwen.model import (
    DATA_AXIS,
    MODEL_AXIS,
    DecoderLayer,
    HookValues,
    Qwen2,
    gather_slots,
    mean_of_segments,
    rotary_embedding,
)
from qwen.params import layer_specs


class MeshError(ValueError):
    """A mesh that does not fit the devices or the model."""


def make_mesh(shape: tuple[int, int] | None, devices: Sequence[jax.Device]) -> Mesh:
    """A (data, model) mesh over the first devices; all of them along data by default.

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
    """
    Raises:
      MeshError: if the model axis does not divide the heads and the intermediate dimension.
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


Inputs = Mapping[str, jax.Array]
"""The arrays of ``StepInputs`` by name, on the devices."""

Rotary = tuple[jax.Array, jax.Array]
"""Cosines and sines, [R, L, D / 2] float32 each, the same for all layers of a step."""


@dataclass(frozen=True)
class StepPrograms:
    """Compiled for one step shape; x is the residual stream, [R, L, H].

    Attributes:
      embed: (embedding, inputs) to (x, rotary).
      layer: (layer state, x, rotary, inputs) to x after the layer, and what is captured of it at
        each hook point that was asked for.
      top: the same for the highest layer, what is captured alone.
    """

    embed: Callable[..., tuple[jax.Array, Rotary]]
    layer: Callable[..., tuple[jax.Array, HookValues]]
    top: Callable[..., HookValues]


class Programs:
    """Compiles and runs the steps of one model. Thread-safe; compiles each shape once."""

    def __init__(
        self,
        model: Qwen2,
        config: ModelConfig,
        mesh: Mesh,
        layers: Sequence[int],
        pooling: Pooling,
        form: AttentionForm,
        capture_dtype: jnp.dtype,
        hook_points: Sequence[HookPoint] = ("resid_post",),
    ) -> None:
        self.mesh = mesh
        self._config, self._pooling, self._form = config, pooling, form
        self._hook_points = tuple(hook_points)
        self._captured = frozenset(layers)
        self._capture_dtype = capture_dtype
        self._graph = nnx.graphdef(model.layers[0])
        self.use_parameters(model)
        self._functions = self._jitted()
        self._compiled: dict[StepShape, Future[StepPrograms]] = {}
        self._lock = Lock()
        self._lowering = Lock()

    def use_parameters(self, model: Qwen2) -> None:
        """Takes the parameters of a model like the one before, which may have had no values."""
        self._embedding = model.embedding.get_value()
        self._layer_states = [nnx.state(layer) for layer in model.layers]

    def compile_ahead(self, shapes: Sequence[StepShape], executor: Executor) -> None:
        """Starts to compile these shapes in the background, each once whoever asks for it."""
        with self._lock:
            for shape in shapes:
                if shape not in self._compiled:
                    self._compiled[shape] = executor.submit(self.compile, shape)

    def run(self, inputs: StepInputs, shape: StepShape) -> dict[Site, jax.Array]:
        """Dispatches a step; the arrays are futures until something reads them.

        Returns:
          For each captured site [rows, segments, hidden] (pooled) or [rows, length, hidden].
        """
        programs = self._compiled[shape].result()
        placed = self._place(inputs)
        x, rotary = programs.embed(self._embedding, placed)
        captured = {}
        top = len(self._layer_states) - 1
        for index, state in enumerate(self._layer_states[:top]):
            x, values = programs.layer(state, x, rotary, placed)
            if index in self._captured:
                captured[index] = values
        captured[top] = programs.top(self._layer_states[top], x, rotary, placed)
        return {
            site_of(layer, hook_point): vectors
            for layer, values in captured.items()
            for hook_point, vectors in values.items()
        }

    def compile(self, shape: StepShape) -> StepPrograms:
        """The programs for steps of this shape."""
        lowered = self.lower(shape)
        return StepPrograms(**{name: program.compile() for name, program in lowered.items()})

    def lower(self, shape: StepShape) -> dict[str, jax.stages.Lowered]:
        """The programs for steps of this shape, by their names, before they are compiled.

        The model's parameters need not have values (``abstract_model``), nor the mesh's devices be
        at hand (``jax.experimental.topologies``).
        """
        inputs = self._abstract_inputs(shape)
        state = jax.tree.map(_abstract, self._layer_states[0])
        rows = NamedSharding(self.mesh, P(DATA_AXIS))
        # The interpreter does this, one shape at a time, so that the first one is not the last.
        with self._lowering:
            embed = self._functions.embed.lower(_abstract(self._embedding), inputs)
            x, rotary = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows),
                embed.out_info,
            )
            layer = self._functions.layer.lower(state, x, rotary, inputs)
            top = self._functions.top.lower(state, x, rotary, inputs)
        return {"embed": embed, "layer": layer, "top": top}

    def _place(self, inputs: StepInputs) -> dict[str, jax.Array]:
        rows = NamedSharding(self.mesh, P(DATA_AXIS))
        return jax.device_put(vars(inputs), rows)

    def _abstract_inputs(self, shape: StepShape) -> dict[str, jax.ShapeDtypeStruct]:
        rows = NamedSharding(self.mesh, P(DATA_AXIS))
        slots, segments = (shape.rows, shape.length), (shape.rows, shape.segments)
        shapes = {
            "token_ids": slots,
            "positions": slots,
            "segment_ids": slots,
            "last_slots": segments,
        }
        return {
            name: jax.ShapeDtypeStruct(size, jnp.int32, sharding=rows)
            for name, size in shapes.items()
        }

    def _jitted(self) -> Any:
        specs = layer_specs(self._config, self._embedding.dtype, self._form)
        rows = P(DATA_AXIS)
        sharded = partial(jax.shard_map, mesh=self.mesh, check_vma=False)
        over_layer = partial(sharded, in_specs=(specs, rows, rows, rows), out_specs=rows)
        return StepPrograms(
            embed=jax.jit(sharded(self._embed, in_specs=(P(), rows), out_specs=rows)),
            layer=jax.jit(over_layer(self._layer), donate_argnums=1),
            top=jax.jit(over_layer(self._top)),
        )

    def _embed(self, embedding: jax.Array, inputs: Inputs) -> tuple[jax.Array, Rotary]:
        return embedding[inputs["token_ids"]], rotary_embedding(inputs["positions"], self._config)

    def _layer(
        self, state: nnx.State, x: jax.Array, rotary: Rotary, inputs: Inputs
    ) -> tuple[jax.Array, HookValues]:
        layer: DecoderLayer = nnx.merge(self._graph, state)
        values = layer(
            x,
            rotary,
            inputs["segment_ids"],
            inputs["positions"],
            self._form,
            self._hook_points,
        )
        captured = {point: self._pooled(values[point], inputs) for point in self._hook_points}
        return values["resid_post"], captured

    def _top(self, state: nnx.State, x: jax.Array, rotary: Rotary, inputs: Inputs) -> HookValues:
        if self._pooling != "last":
            return self._layer(state, x, rotary, inputs)[1]
        layer: DecoderLayer = nnx.merge(self._graph, state)
        values = layer.at_slots(
            x,
            rotary,
            inputs["segment_ids"],
            inputs["last_slots"],
            self._form,
            self._hook_points,
        )
        return {point: values[point].astype(self._capture_dtype) for point in self._hook_points}

    def _pooled(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        if self._pooling == "last":
            x = gather_slots(x, inputs["last_slots"])
        elif self._pooling == "mean":
            x = mean_of_segments(x, inputs["segment_ids"], inputs["last_slots"].shape[1])
        return x.astype(self._capture_dtype)


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
