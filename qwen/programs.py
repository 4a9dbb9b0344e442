"""The compiled programs that take a step through the model.

One program serves all layers but the top one, so a new shape costs three small compilations
whatever the depth of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from activation_dataset.format import Pooling
from activation_dataset.sites import HookPoint, Site, site_of
from qwen.batching import StepInputs, StepShape
from qwen.config import ModelConfig
from qwen.decoder import Decoder, DecoderLayer
from qwen.layers.pooling import gather_slots, mean_of_segments
from qwen.layers.rope import Rotary, rotary_embedding
from qwen.load_once import load_once
from qwen.mesh import DATA_AXIS
from qwen.ops.base import Ops
from qwen.parameters import layer_specs
from qwen.statistics import moments_of

Inputs = Mapping[str, jax.Array]
"""The arrays of ``StepInputs`` by name, on the devices."""


class Captured(NamedTuple):
    """What a step gives for one site.

    Attributes:
      vectors: [R, S, H] if pooled, else [R, L, H].
      moments: [devices along the data axis, 2 * H + places of a device], from `moments_of`.
    """

    vectors: jax.Array
    moments: jax.Array


CapturedPoints = dict[HookPoint, Captured]
"""What is captured of one layer."""


@dataclass(frozen=True)
class StepPrograms:
    """Programs compiled for one step shape; x is the residual stream, [R, L, H].

    Attributes:
      embed: (embedding, inputs) to (x, rotary).
      layer: (layer state, x, rotary, inputs) to (x after the layer, what is captured of it).
      top: the same for the highest layer, without x.
    """

    embed: Callable[..., tuple[jax.Array, Rotary]]
    layer: Callable[..., tuple[jax.Array, CapturedPoints]]
    top: Callable[..., CapturedPoints]


class Programs:
    """Compiles and runs the steps of one model. Safe to use from several threads.

    Attributes:
      of_shape: the programs for steps of a shape, compiled when they are first asked for.
    """

    def __init__(
        self,
        model: Decoder,
        config: ModelConfig,
        mesh: Mesh,
        ops: Ops,
        layers: Sequence[int],
        hook_points: Sequence[HookPoint],
        pooling: Pooling,
        capture_dtype: jnp.dtype,
    ) -> None:
        self.mesh = mesh
        self._config, self._pooling, self._ops = config, pooling, ops
        self._hook_points = tuple(hook_points)
        self._captured = frozenset(layers)
        self._capture_dtype = capture_dtype
        self._graph = nnx.graphdef(model.layers[0])
        self.use_parameters(model)
        self._functions = self._jitted()
        self.of_shape = load_once(self.compile)
        self._asked_for: set[StepShape] = set()
        self._lowering = Lock()

    def use_parameters(self, model: Decoder) -> None:
        """Use the parameters of a model like the one before, which may have had no values."""
        self._embedding = model.embedding.get_value()
        self._layer_states = [nnx.state(layer) for layer in model.layers]

    def compile_ahead(self, shapes: Sequence[StepShape], executor: Executor) -> None:
        """Start to compile new shapes in the background.

        A step that needs one waits for it. If it fails, the step compiles it again and raises.
        """
        for shape in dict.fromkeys(shapes):
            if shape not in self._asked_for:
                self._asked_for.add(shape)
                executor.submit(self.of_shape, shape)

    def run(self, inputs: StepInputs, shape: StepShape) -> dict[Site, Captured]:
        """Dispatch a step; the arrays are futures until something reads them."""
        programs = self.of_shape(shape)
        placed = self._place(inputs)
        x, rotary = programs.embed(self._embedding, placed)
        captured = {}
        top = len(self._layer_states) - 1
        for index, state in enumerate(self._layer_states[:top]):
            x, points = programs.layer(state, x, rotary, placed)
            if index in self._captured:
                captured[index] = points
        captured[top] = programs.top(self._layer_states[top], x, rotary, placed)
        return {
            site_of(layer, hook_point): found
            for layer, points in captured.items()
            for hook_point, found in points.items()
        }

    def compile(self, shape: StepShape) -> StepPrograms:
        """Compile the programs for steps of this shape."""
        lowered = self.lower(shape)
        return StepPrograms(**{name: program.compile() for name, program in lowered.items()})

    def lower(self, shape: StepShape) -> dict[str, jax.stages.Lowered]:
        """Lower the programs for steps of this shape, by their names in `StepPrograms`.

        The model's parameters need no values (`abstract_model`), and the mesh's devices need not
        be at hand (`jax.experimental.topologies`).
        """
        inputs = self._abstract_inputs(shape)
        state = jax.tree.map(_abstract, self._layer_states[0])
        rows = NamedSharding(self.mesh, P(DATA_AXIS))
        # Python traces one shape at a time, so that the first one is not finished last.
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
        specs = layer_specs(self._config, self._embedding.dtype, self._ops)
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
    ) -> tuple[jax.Array, CapturedPoints]:
        layer: DecoderLayer = nnx.merge(self._graph, state)
        segment_ids = inputs["segment_ids"]
        values = layer(x, rotary, segment_ids, inputs["positions"], self._ops, self._hook_points)
        captured = {
            point: self._captured_of(self._pooled(values[point], inputs), segment_ids)
            for point in self._hook_points
        }
        return values["resid_post"], captured

    def _top(
        self, state: nnx.State, x: jax.Array, rotary: Rotary, inputs: Inputs
    ) -> CapturedPoints:
        if self._pooling != "last":
            return self._layer(state, x, rotary, inputs)[1]
        layer: DecoderLayer = nnx.merge(self._graph, state)
        segment_ids, slots = inputs["segment_ids"], inputs["last_slots"]
        values = layer.at_slots(x, rotary, segment_ids, slots, self._ops, self._hook_points)
        return {point: self._captured_of(values[point], segment_ids) for point in self._hook_points}

    def _pooled(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """[R, L, H] to [R, S, H] if pooled, else unchanged."""
        if self._pooling == "last":
            return gather_slots(x, inputs["last_slots"])
        if self._pooling == "mean":
            return mean_of_segments(x, inputs["segment_ids"], inputs["last_slots"].shape[1])
        return x

    def _captured_of(self, x: jax.Array, segment_ids: jax.Array) -> Captured:
        vectors = x.astype(self._capture_dtype)
        real = segment_ids > 0
        if self._pooling != "none":
            samples = segment_ids.max(axis=1, keepdims=True)
            real = jnp.arange(vectors.shape[1]) < samples
        return Captured(vectors, moments_of(vectors, real))


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
