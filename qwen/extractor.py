"""Capture of a model's activations, layer by layer, for token ids or text.

In a notebook::

    from qwen import ActivationExtractor
    extractor = ActivationExtractor.load("Qwen/Qwen2.5-0.5B", layers=range(10, 24))
    activations = extractor(["The residual stream"])   # {layer: [texts, hidden]}
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version as installed_version
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from activation_dataset.sites import Site, place_of, sites_of
from activation_dataset.storage_dtype import LARGEST_ELEMENT, StorageDtype, to_float32
from qwen.batching import (
    SampleTokens,
    Step,
    packing_for,
    plan_steps,
    separate_samples,
    split_step,
    step_inputs,
    with_chosen,
)
from qwen.captured import CapturedSamples, on_host
from qwen.compile_cache import use_compile_cache
from qwen.malloc import keep_freed_memory
from qwen.mesh import DATA_AXIS, MODEL_AXIS, check_mesh_fits_model, make_mesh
from qwen.ops.choose import choose_ops
from qwen.parameters import abstract_model, load_model
from qwen.programs import Captured, Programs
from qwen.settings import ExtractorSettings, check_hook_points, check_layers
from qwen.source import ModelSource, OtherWorkerError, open_model

LOGGER = logging.getLogger(__name__)

Value = TypeVar("Value")

STEPS_IN_FLIGHT = 2
"""Maximum number of steps on the device or in transfer to the host at the same time."""


def open_extractor(
    settings: ExtractorSettings, samples_to_come: Sequence[SampleTokens] = ()
) -> ActivationExtractor:
    """Open the model of the settings on this worker's devices.

    This sets the environment and the compile cache, so call it before anything uses JAX's devices.
    The arguments are the same as in `ActivationExtractor`.

    Raises:
        OtherWorkerError: if this worker's model, package versions or operations differ from the
            settings.
        ValueError: if the settings do not fit the model or the devices.
    """
    for name, value in settings.environment:
        os.environ.setdefault(name, value)
    if settings.compile_cache:
        use_compile_cache(settings.compile_cache)
    source = open_model(settings.model_path, settings.ignore_config)
    _check_model(source, settings)
    return ActivationExtractor(source, settings, samples_to_come)


def _check_model(source: ModelSource, settings: ExtractorSettings) -> None:
    """Check that the model and the package versions match the settings.

    Raises:
        OtherWorkerError: if any of them differs. The message names the difference.
    """
    config, expected = source.config, settings.expected_config
    if expected is not None and config != expected:
        theirs, ours = expected.to_json(), config.to_json()
        changed = [
            f"{name} {ours.get(name)} (the run was started with {theirs.get(name)})"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        raise OtherWorkerError(
            f"{settings.model_path}: in config.json, this worker sees {', '.join(changed)}. Give "
            "every worker the same model."
        )
    changed = [
        f"{name} {found} (the run was started with {version})"
        for name, version in settings.expected_versions
        if (found := installed_version(name)) != version
    ]
    if changed:
        raise OtherWorkerError(
            f"this worker has {', '.join(changed)}, and other versions may round differently. "
            "Start all workers from one image, or from the launcher's environment."
        )
    fingerprint = settings.weights_fingerprint
    if fingerprint and (found := source.weights_fingerprint()) != fingerprint:
        raise OtherWorkerError(
            f"{settings.model_path}: this worker sees weights {found}, but the run was started "
            f"with {fingerprint}. Give every worker the same model."
        )


class DeviceMemoryError(RuntimeError):
    """A sample that is too long for the device's memory."""


class ActivationExtractor:
    """A model whose weights are resident on the devices, and the capture of its activations.

    By default, the captured value is the residual stream after a layer; for the last layer, before
    the final norm. Layers above the highest captured one are not loaded.

    Attributes:
        source: the model.
        settings: the settings, with numbers for all layers.
        sites: every hook point of every captured layer.
        ops: operations and kind of device, such as `xla on cpu` or `splash on TPU v5 lite`.
    """

    def __init__(
        self,
        source: ModelSource,
        settings: ExtractorSettings,
        samples_to_come: Sequence[SampleTokens] = (),
    ) -> None:
        """Load the model onto this process's devices.

        Args:
            source: the model; the `model_path` of the settings is not opened again.
            settings: what to capture and how.
            samples_to_come: samples of the first call of `extract`. Their programs are compiled
                while the weights load.

        Raises:
            OtherWorkerError: if the operations differ from those that the settings expect.
            ValueError: if layers, hook points, mesh or weights do not fit the model or the devices.
        """
        config = source.config
        settings = settings.with_layers_of(config.num_hidden_layers)
        check_layers(settings.layers, config.num_hidden_layers)
        check_hook_points(settings, config)
        layers, hook_points, pooling = settings.layers, settings.hook_points, settings.pooling
        self.sites, self._top_sites = settings.sites, sites_of(layers[-1:], hook_points)
        mesh = make_mesh(settings.mesh_shape, jax.local_devices())
        check_mesh_fits_model(mesh, config)
        weights = source.weights()

        if mesh.devices.flat[0].platform == "cpu":
            keep_freed_memory()
        self.source, self.settings, self.pooling = source, settings, pooling
        compute = jnp.dtype(settings.compute_dtype)
        ops = choose_ops(mesh.devices.flat[0], compute, config, mesh.shape[MODEL_AXIS])
        self.ops = f"{ops.name} on {mesh.devices.flat[0].device_kind}"
        if settings.expected_ops and self.ops not in settings.expected_ops:
            raise OtherWorkerError(
                f"this worker computes with {self.ops} operations, but the finished files of this "
                f"run were computed with {', '.join(settings.expected_ops)}, which round "
                "differently. Resume on the same kind of machine, or replace all files with "
                "--overwrite."
            )
        LOGGER.info("%s: operations %s, %d devices", source.name, self.ops, mesh.size)
        captured: StorageDtype = settings.storage_dtype
        if captured == "float32" and settings.compute_dtype == "bfloat16" and pooling != "mean":
            captured = "bfloat16"  # Converted to float32 on the host.
        num_layers = layers[-1] + 1
        self._programs = Programs(
            abstract_model(config, num_layers, compute, mesh, ops),
            config,
            mesh,
            ops,
            layers,
            hook_points,
            pooling,
            captured,
        )
        self._packing = packing_for(ops.name, settings.batch_size, mesh.shape[DATA_AXIS])
        self._plan([self._tokens_of(sample) for sample in samples_to_come])
        self._programs.use_parameters(load_model(weights, config, num_layers, compute, mesh, ops))

    @classmethod
    def load(
        cls,
        model_path: str | os.PathLike[str],
        layers: Sequence[int] | Literal["all"],
        **settings: object,
    ) -> ActivationExtractor:
        """Open a model.

        Args:
            model_path: as in `ExtractorSettings`.
            layers: layers to capture, or "all".
            **settings: other fields of `ExtractorSettings`.

        Raises:
            ValueError: if `layers` is empty, or the settings do not fit the model or the devices.
        """
        opened = ExtractorSettings(model_path, layers, **settings)  # type: ignore[arg-type]
        if not opened.layers and layers != "all":
            raise ValueError("no layer to capture; pass layer numbers or 'all'")
        return open_extractor(opened)

    def __call__(
        self, texts: Sequence[str]
    ) -> dict[Site, np.ndarray] | list[dict[Site, np.ndarray]]:
        """Tokenize texts and capture their activations.

        Returns:
            With pooling, [texts, width] by site. Without pooling, a list with [tokens, width] by
            site for each text. The site of the residual stream after a layer is the layer's number;
            other sites have the names of TransformerLens, such as `blocks.10.hook_mlp_out`.

        Raises:
            TypeError: if `texts` is a string.
            ValueError: if a text has no tokens, or more than the model has positions.
        """
        if isinstance(texts, str):
            raise TypeError("texts is a single string; pass a list of strings")
        tokenizer = self.source.tokenizer()
        token_ids = [
            np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
            for text in texts
        ]
        is_scaled = self.settings.storage_dtype in LARGEST_ELEMENT
        found: list[dict[Site, np.ndarray]] = [{} for _ in texts]
        for captured in self.extract(token_ids):
            ends = np.cumsum(captured.vector_counts)
            for site, vectors in captured.vectors.items():
                parts = np.split(vectors, ends[:-1])
                for sample, part in zip(captured.samples, parts, strict=True):
                    found[sample][site] = to_float32(part) if is_scaled else part.copy()
        if self.pooling == "none":
            return found
        if not found:
            width = self.source.config.width
            dtype = jnp.dtype("float32" if is_scaled else self.settings.storage_dtype)
            return {s: np.empty((0, width(*place_of(s))), dtype) for s in self.sites}
        return {site: np.concatenate([each[site] for each in found]) for site in self.sites}

    def extract(self, samples: Sequence[np.ndarray | SampleTokens]) -> Iterator[CapturedSamples]:
        """Capture the activations of samples, each exactly once.

        While a step computes, the previous one is copied to the host. At most two steps are in
        flight, so host memory does not grow with the number of samples. The order of the samples
        depends only on their lengths and the batch size.

        Args:
            samples: [tokens] integer ids each. A `SampleTokens` may restrict the tokens that are
                stored or averaged.

        Yields:
            The captured samples of one step.

        Raises:
            ValueError: if a sample is empty, is not an array of integers, has an id outside the
                vocabulary or more tokens than the model has positions, or if tokens are chosen
                with pooling "last".
        """
        given = [self._tokens_of(sample) for sample in samples]
        vocabulary = self.source.config.vocab_size
        positions = self.source.config.max_position_embeddings
        for index, (ids, _) in enumerate(given):
            if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
                raise ValueError(
                    f"sample {index}: expected one or more integer ids in 0..{vocabulary - 1}, "
                    f"got {ids.dtype} of shape {list(ids.shape)}"
                )
            if len(outside := ids[(ids < 0) | (ids >= vocabulary)]):
                raise ValueError(
                    f"sample {index}: token id {outside[0]} is out of range; the model's ids are "
                    f"in 0..{vocabulary - 1} (vocab_size)"
                )
            if ids.size > positions:
                raise ValueError(
                    f"sample {index}: {ids.size:,} tokens exceed the {positions:,} positions that "
                    "the model supports (max_position_embeddings); cut it into shorter samples"
                )
        steps = self._plan(given)
        in_flight: deque[tuple[Step, dict[Site, Captured] | None]] = deque()
        for step in steps:
            in_flight.append((step, self._dispatch(step, given)))
            if len(in_flight) >= STEPS_IN_FLIGHT:
                yield from self._collect(*in_flight.popleft(), given)
        while in_flight:
            yield from self._collect(*in_flight.popleft(), given)

    def _dispatch(self, step: Step, samples: Sequence[SampleTokens]) -> dict[Site, Captured] | None:
        """Start a step; return None if it exceeds the device's memory."""

        def start() -> dict[Site, Captured]:
            inputs = step_inputs(step, samples, self.pooling == "mean")
            captured = self._programs.run(inputs, step.shape)
            for vectors, moments in captured.values():
                vectors.copy_to_host_async()
                moments.copy_to_host_async()
            return captured

        return _unless_out_of_memory(start)

    def _collect(
        self, step: Step, captured: dict[Site, Captured] | None, samples: Sequence[SampleTokens]
    ) -> Iterator[CapturedSamples]:
        """Wait for a step; if it exceeded the device's memory, run smaller steps instead.

        If activations are not finite, each sample of the step runs again in a step of its own:
        attention multiplies masked values by 0, and 0 x NaN is NaN.
        """
        found = None
        if captured is not None:
            counts = self._vector_counts(step, samples)
            storage = self.settings.storage_dtype
            found = _unless_out_of_memory(lambda: on_host(step, captured, counts, storage))
        if found is None:
            yield from self._run(self._smaller(step), samples)
            return
        alone = separate_samples(step, self._packing.rows)
        # A nonfinite residual stream stays nonfinite in all higher layers.
        if alone and any(found.statistics[site].nonfinite_count for site in self._top_sites):
            yield from self._run(alone, samples)
        else:
            yield found

    def _smaller(self, step: Step) -> Sequence[Step]:
        """Split a step that exceeds the device's memory.

        Raises:
            DeviceMemoryError: if the step is the smallest one that holds its single sample.
        """
        halves = split_step(step, self._packing.rows)
        if halves is None:
            raise DeviceMemoryError(
                f"the device ran out of memory on one sample of {step.tokens} tokens; lower "
                "--max_length, or split the model over more devices with --mesh_shape"
            )
        LOGGER.warning(
            "the device ran out of memory on a step of %d x %d token slots, which now runs as "
            "smaller steps; lower --batch_size to avoid this",
            step.shape.rows,
            step.shape.length,
        )
        return halves

    def _run(
        self, steps: Sequence[Step], samples: Sequence[SampleTokens]
    ) -> Iterator[CapturedSamples]:
        """Run the steps that replace another step, one at a time."""
        for step in self._ready(steps, samples):
            yield from self._collect(step, self._dispatch(step, samples), samples)

    def order(self, lengths: Sequence[int]) -> list[int]:
        """Return the order in which `extract` yields samples of these lengths, as indices."""
        return [
            placed.sample
            for step in plan_steps(lengths, self._packing)
            for placed in step.placements
        ]

    def _plan(self, samples: Sequence[SampleTokens]) -> list[Step]:
        steps = plan_steps([len(each.ids) for each in samples], self._packing)
        return self._ready(steps, samples)

    def _ready(self, steps: Sequence[Step], samples: Sequence[SampleTokens]) -> list[Step]:
        """Complete the shapes of steps and start compiling their programs."""
        if self.pooling != "mean" and any(each.positions is not None for each in samples):
            steps = with_chosen(steps, [each.chosen for each in samples])
        self._programs.compile_ahead(step.shape for step in steps)
        return list(steps)

    def _vector_counts(self, step: Step, samples: Sequence[SampleTokens]) -> tuple[int, ...]:
        """Return the number of vectors of each sample of a step, in the order of its placements."""
        if self.pooling == "mean":
            return (1,) * len(step.placements)
        return tuple(samples[placed.sample].chosen for placed in step.placements)

    def _tokens_of(self, sample: np.ndarray | SampleTokens) -> SampleTokens:
        ids, positions = sample if isinstance(sample, SampleTokens) else (sample, None)
        ids = np.asarray(ids)
        if self.pooling == "last":
            if positions is not None:
                raise ValueError("pooling 'last' stores the last token, so no tokens can be chosen")
            positions = np.array([ids.size - 1])
        return SampleTokens(ids, positions)


def _unless_out_of_memory(call: Callable[[], Value]) -> Value | None:
    """Return the result of a call; None if a device ran out of memory."""
    try:
        return call()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
