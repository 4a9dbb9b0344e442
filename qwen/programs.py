"""The compiled programs that run a step through the model.

All layers of a kind except the top layer share one program, so a new shape costs a few small
compilations regardless of the model's depth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from activation_dataset.storage_dtype import LARGEST_ELEMENT, StorageDtype
from qwen.batching import SLOTS_PER_SEGMENT, StepInputs, StepShape
from qwen.config import LayerKind, ModelConfig
from qwen.decoder import Decoder, DecoderLayer, HookValues
from qwen.layers.pooling import gather_slots, mean_of_segments
from qwen.layers.rope import Rotary, rotary_embedding
from qwen.layers.storage import quantize
from qwen.load_once import load_once
from qwen.mesh import DATA_AXIS
from qwen.ops.base import Ops
from qwen.statistics import moments_of

FEW_CHOSEN = 0.25
"""Share of chosen slots up to which the top layer is computed only at the chosen slots."""

Inputs = Mapping[str, jax.Array]
"""The arrays of `StepInputs` by name, on the devices."""


class Captured(NamedTuple):
    """Results of one step at one site.

    Attributes:
        vectors: [R, N, row elements], the vectors of the samples or chosen tokens of each row in
            order, as they are stored; the rest is padding.
        moments: [devices along the data axis, 2 * H + places of a device] float32, from
            `moments_of`.
    """

    vectors: jax.Array
    moments: jax.Array


@dataclass(frozen=True)
class StepPrograms:
    """Programs compiled for one step shape; x is the residual stream, [R, L, H].

    Attributes:
        embed: maps (embedding, inputs) to (x, rotary).
        layers: for each kind of layer, maps (layer state, x, rotary, inputs) to (x after the layer,
            captured values).
        top: like `layers` for the highest layer, but returns only the captured values.
        moments: for each width, maps (captured vectors, inputs) to moments. These are separate
            programs, because XLA may recompute values inside a program, which can differ from the
            stored values in the last bit.
    """

    embed: Callable[..., tuple[jax.Array, Rotary]]
    layers: Mapping[LayerKind, Callable[..., tuple[jax.Array, HookValues]]]
    top: Callable[..., HookValues]
    moments: Mapping[int, Callable[..., jax.Array]]


class Programs:
    """Compiler and runner of the steps of one model, safe to use from several threads."""

    def __init__(
        self,
        model: Decoder,
        config: ModelConfig,
        mesh: Mesh,
        ops: Ops,
        layers: Sequence[int],
        hook_points: Sequence[HookPoint],
        pooling: Pooling,
        capture_dtype: StorageDtype,
    ) -> None:
        self.mesh = mesh
        self._config, self._ops, self._pooling = config, ops, pooling
        self._hook_points = tuple(hook_points)
        self._captured = frozenset(layers)
        self._capture_dtype = capture_dtype
        self._kinds = [layer.kind for layer in model.layers]
        self._graphs = {layer.kind: nnx.graphdef(layer) for layer in model.layers}
        self.use_parameters(model)
        self._functions = self._jitted()
        self._of_shape = load_once(self.compile)
        self._asked_for: set[StepShape] = set()
        self._compilers = ThreadPoolExecutor(os.cpu_count(), "compile")
        self._lowering = Lock()

    def use_parameters(self, model: Decoder) -> None:
        """Use the parameters of a model with the same structure as the current one."""
        self._embedding = model.embedding.get_value()
        self._layer_states = [nnx.state(layer) for layer in model.layers]

    def compile_ahead(self, shapes: Iterable[StepShape]) -> None:
        """Start compiling new shapes in the background.

        A step waits for the programs of its shape. If a compilation fails, the step compiles the
        shape again and raises the error.
        """
        for shape in shapes:
            if shape not in self._asked_for:
                self._asked_for.add(shape)
                self._compilers.submit(self._of_shape, shape)

    def run(self, inputs: StepInputs, shape: StepShape) -> dict[Site, Captured]:
        """Dispatch a step; return its arrays, which are futures."""
        programs = self._of_shape(shape)
        placed = jax.device_put(vars(inputs), self._rows)
        x, rotary = programs.embed(self._embedding, placed)
        captured: dict[int, HookValues] = {}
        top = len(self._layer_states) - 1
        for index, state in enumerate(self._layer_states[:top]):
            x, values = programs.layers[self._kinds[index]](state, x, rotary, placed)
            if index in self._captured:
                captured[index] = values
        captured[top] = programs.top(self._layer_states[top], x, rotary, placed)
        return {
            site_of(layer, hook_point): Captured(
                vectors, programs.moments[vectors.shape[-1]](vectors, placed)
            )
            for layer, values in captured.items()
            for hook_point, vectors in values.items()
        }

    def compile(self, shape: StepShape) -> StepPrograms:
        """Compile the programs for steps of this shape."""
        lowered = self.lower(shape)
        return StepPrograms(
            lowered.embed.compile(),
            {kind: program.compile() for kind, program in lowered.layers.items()},
            lowered.top.compile(),
            {width: program.compile() for width, program in lowered.moments.items()},
        )

    def lower(self, shape: StepShape) -> Any:
        """Lower the programs for steps of this shape to `StepPrograms` of `jax.stages.Lowered`.

        This works without the values of parameters (`abstract_model`) and without the devices of
        the mesh (`jax.experimental.topologies`).
        """

        def on_rows(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._rows)

        inputs = jax.tree.map(on_rows, vars(StepInputs.empty(shape)))
        # Tracing holds Python's GIL, so concurrent tracing would delay the first shape.
        with self._lowering:
            embed = self._functions.embed.lower(_abstract(self._embedding), inputs)
            x, rotary = jax.tree.map(on_rows, embed.out_info)
            *below, highest = [jax.tree.map(_abstract, state) for state in self._layer_states]
            layers = {
                kind: self._functions.layers[kind].lower(state, x, rotary, inputs)
                for kind, state in dict(zip(self._kinds, below, strict=False)).items()
            }
            top = self._functions.top.lower(highest, x, rotary, inputs)
            captured = [program.out_info[-1] for program in layers.values()] + [top.out_info]
            widths = {
                vectors.shape[-1]: on_rows(vectors)
                for values in captured
                for vectors in values.values()
            }
            moments = {
                width: self._functions.moments.lower(vectors, inputs)
                for width, vectors in widths.items()
            }
        return StepPrograms(embed, layers, top, moments)

    @property
    def _rows(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(DATA_AXIS))

    def _jitted(self) -> Any:
        rows = P(DATA_AXIS)
        sharded = partial(jax.shard_map, mesh=self.mesh, out_specs=rows, check_vma=False)

        def over_layer(function: Callable[..., Any], layer: int) -> Callable[..., Any]:
            specs = jax.tree.map(lambda leaf: leaf.sharding.spec, self._layer_states[layer])
            kind = self._kinds[layer]
            return sharded(partial(function, kind), in_specs=(specs, rows, rows, rows))

        moments: Any = jax.jit(sharded(self._moments, in_specs=(rows, rows)))  # For all widths.
        return StepPrograms(
            embed=jax.jit(sharded(self._embed, in_specs=(P(), rows))),
            layers={
                kind: jax.jit(over_layer(self._layer, self._kinds.index(kind)), donate_argnums=1)
                for kind in self._graphs
            },
            top=jax.jit(over_layer(self._top, -1)),
            moments=moments,
        )

    def _embed(self, embedding: jax.Array, inputs: Inputs) -> tuple[jax.Array, Rotary]:
        return embedding[inputs["token_ids"]], rotary_embedding(inputs["positions"], self._config)

    def _layer(
        self,
        kind: LayerKind,
        state: nnx.State,
        x: jax.Array,
        rotary: Rotary,
        inputs: Inputs,
        slots: jax.Array | None = None,
    ) -> tuple[jax.Array, HookValues]:
        layer: DecoderLayer = nnx.merge(self._graphs[kind], state)
        segment_ids, positions = inputs["segment_ids"], inputs["positions"]
        values = layer(x, rotary, segment_ids, positions, self._ops, self._hook_points, slots)
        captured = {
            point: self._once(point, values[point])
            for point in self._hook_points
            if point in values
        }
        if slots is None:
            captured = {point: self._pooled(value, inputs) for point, value in captured.items()}
        return values["resid_post"], {p: self._stored(value) for p, value in captured.items()}

    def _stored(self, vectors: jax.Array) -> jax.Array:
        if self._capture_dtype in LARGEST_ELEMENT:
            return quantize(vectors, self._capture_dtype)
        return vectors.astype(self._capture_dtype)

    def _once(self, point: HookPoint, value: jax.Array) -> jax.Array:
        """Keep one copy of each key-value head, which a large mesh repeats on several devices."""
        copies = value.shape[-1] // (self._config.num_key_value_heads * self._config.head_dim)
        if point not in ("k", "v") or copies == 1:
            return value
        heads = value.reshape(*value.shape[:2], -1, copies, self._config.head_dim)
        return heads[..., 0, :].reshape(*value.shape[:2], -1)

    def _top(
        self, kind: LayerKind, state: nnx.State, x: jax.Array, rotary: Rotary, inputs: Inputs
    ) -> HookValues:
        chosen = inputs["chosen_slots"]
        is_few = 0 < chosen.shape[1] <= FEW_CHOSEN * x.shape[1]
        return self._layer(kind, state, x, rotary, inputs, chosen if is_few else None)[1]

    def _pooled(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """Reduce x [R, L, H] to the vectors of each row, [R, N, H]."""
        if self._pooling == "mean":
            segments = x.shape[1] // SLOTS_PER_SEGMENT
            return mean_of_segments(x, inputs["averaged_ids"], segments)
        chosen = inputs["chosen_slots"]
        return gather_slots(x, chosen) if chosen.shape[1] else x

    def _moments(self, vectors: jax.Array, inputs: Inputs) -> jax.Array:
        return moments_of(vectors, jnp.arange(vectors.shape[1]) < inputs["vectors"][:, None])


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
