"""Settings of an extractor, passed from the flags to the workers. Imports no JAX."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from activation_dataset.format import POOLINGS, Pooling
from activation_dataset.record import RecordKind
from activation_dataset.sites import (
    DEFAULT_HOOK_POINT,
    HookPoint,
    Site,
    in_forward_order,
    layers_named,
    sites_of,
)
from activation_dataset.storage_dtype import (
    COMPUTE_DTYPES,
    STORAGE_DTYPES,
    ComputeDtype,
    StorageDtype,
)
from qwen.config import ModelConfig


@dataclass(frozen=True)
class ExtractorSettings:
    """Settings from which a worker builds its `ActivationExtractor`.

    Attributes:
        model_path: local folder, `gs://` folder, hub id with or without `@REVISION`, or `random:`
            preset. A `Path` becomes a string on construction.
        layers: layers to capture, counted from 0 and sorted on construction; empty for "all".
        hook_points: hook points to capture in each layer, sorted in forward order on construction.
        pooling: `last` token or `mean` of a sample, or `none` for every token.
        compute_dtype: dtype of the parameters and the residual stream.
        storage_dtype: dtype of the captured vectors.
        batch_size: token slots per device and step, in units of 512.
        mesh_shape: devices along (data, model); all local devices along data if None.
        compile_cache: local or `gs://` folder for compiled programs; empty for no cache.
        ignore_config: unsupported fields of `config.json` to ignore.
        environment: environment variables for the runtime of a device, such as `TPU_WORKER_ID`.
            Variables that are already set keep their values.
        expected_config: model that the run was started with. A worker with another value of this or
            one of the following attributes refuses to start; None or empty is not checked.
        weights_fingerprint: fingerprint of the weights that the run was started with.
        expected_versions: names and versions of the packages that the run was started with.
        expected_ops: operations that computed the finished files of the run.
    """

    model_path: str
    layers: tuple[int, ...]
    hook_points: tuple[HookPoint, ...] = (DEFAULT_HOOK_POINT,)
    pooling: Pooling = "last"
    compute_dtype: ComputeDtype = "bfloat16"
    storage_dtype: StorageDtype = "float32"
    batch_size: int = 8
    mesh_shape: tuple[int, int] | None = None
    compile_cache: str = ""
    ignore_config: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    expected_config: ModelConfig | None = None
    weights_fingerprint: str = ""
    expected_versions: tuple[tuple[str, str], ...] = ()
    expected_ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Normalize the settings and check them as far as possible without a model.

        Raises:
            ValueError: if a value is not allowed. The message names the setting, its value and the
                allowed values.
        """
        for name in ("model_path", "compile_cache"):
            object.__setattr__(self, name, os.fspath(getattr(self, name)))
        object.__setattr__(self, "layers", _layer_numbers(self.layers))
        object.__setattr__(self, "hook_points", in_forward_order(self.hook_points))
        for name, allowed in (
            ("pooling", POOLINGS),
            ("compute_dtype", COMPUTE_DTYPES),
            ("storage_dtype", STORAGE_DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}")

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every hook point of every layer, in forward order.

        Raises:
            ValueError: if `layers` is still "all".
        """
        if not self.layers:
            raise ValueError("the layers are 'all'; call with_layers_of with the number of layers")
        return sites_of(self.layers, self.hook_points)

    def with_layers_of(self, num_layers: int) -> ExtractorSettings:
        """Return the settings with "all" layers replaced by 0 ... num_layers - 1."""
        return self if self.layers else replace(self, layers=tuple(range(num_layers)))

    def record_kind(self, hidden: int) -> RecordKind:
        """Return the kind of the records that store vectors of `hidden` elements."""
        return RecordKind(self.pooling, self.storage_dtype, hidden)


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Check the layers to capture.

    Raises:
        ValueError: if there are no layers, a layer is repeated, or the model lacks a layer.
    """
    if not layers:
        raise ValueError("no layer to capture; pass at least one layer number")
    if len(set(layers)) != len(layers):
        raise ValueError(f"a layer is named twice: {', '.join(map(str, layers))}")
    if outside := [layer for layer in layers if not 0 <= layer < num_layers]:
        raise ValueError(
            f"layers {', '.join(map(str, outside))} do not exist: this model has {num_layers} "
            f"layers, 0 to {num_layers - 1}"
        )


class NoSuchSiteError(ValueError):
    """A hook point that a layer does not have."""


def check_hook_points(settings: ExtractorSettings, config: ModelConfig) -> None:
    """Check that every layer of the settings has every hook point.

    Raises:
        NoSuchSiteError: if a layer lacks a hook point. The message names the layers that have it.
    """
    for point in settings.hook_points:
        having = [each for each in range(config.num_hidden_layers) if config.width(each, point)]
        if lacking := [layer for layer in settings.layers if layer not in having]:
            remedy = f"extract only layers that have it, {layers_named(having)}, or "
            raise NoSuchSiteError(
                f"hook_points: this model has no {point} in the layers {layers_named(lacking)}; "
                f"{remedy if having else ''}leave out {point}"
            )


def _layer_numbers(layers: Sequence[int] | str) -> tuple[int, ...]:
    if isinstance(layers, str) and layers == "all":
        return ()
    try:
        return tuple(sorted(map(operator.index, layers)))  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(
            f"layers must be a sequence of integers or 'all', got {layers!r}"
        ) from error
