"""The settings of an extractor, from the flags to the worker. Imports no JAX."""

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
    """Everything that a worker needs to build its `ActivationExtractor`.

    Attributes:
        model_path: a local folder, a `gs://` folder, a hub id, with or without `@REVISION`, or a
            `random:` preset; a `Path` becomes a string on construction.
        layers: the layers to capture, counted from 0; sorted on construction. Empty for "all".
        hook_points: where in each layer to capture; in forward order on construction.
        pooling: the `last` token or the `mean` of a sample, or `none` for every token.
        compute_dtype: the dtype of the parameters and the residual stream.
        storage_dtype: the dtype of the captured vectors.
        batch_size: token slots per device and step, in units of 512.
        mesh_shape: devices along (data, model); all local devices along data if None.
        compile_cache: a local or `gs://` folder for compiled programs; none if empty.
        ignore_config: fields of `config.json` to leave out although they are not understood.
        environment: variables that a device's runtime reads when it starts, such as
            `TPU_WORKER_ID`; variables that are set already keep their values.
        expected_config, weights_fingerprint, expected_versions, expected_ops: the model and the
            versions of packages that the run was started with, and the operations that computed its
            finished files. A worker that has others refuses to start. What is None or empty is not
            checked.
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
        """Check what can be checked without a model.

        Raises:
            ValueError: naming the setting, its value and the values allowed.
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
            ValueError: if the layers have no numbers yet.
        """
        if not self.layers:
            raise ValueError("the layers are 'all': call with_layers_of with the model's number")
        return sites_of(self.layers, self.hook_points)

    def with_layers_of(self, num_layers: int) -> ExtractorSettings:
        """Return the settings for a model of `num_layers` layers, with numbers for all of them."""
        return self if self.layers else replace(self, layers=tuple(range(num_layers)))

    def record_kind(self, hidden: int) -> RecordKind:
        """Return the kind of the records that vectors of `hidden` elements are stored in."""
        return RecordKind(self.pooling, self.storage_dtype, hidden)


class NoSuchSiteError(ValueError):
    """A hook point that a layer does not have."""


def check_hook_points(settings: ExtractorSettings, config: ModelConfig) -> None:
    """Check that every layer of the settings has every hook point.

    Raises:
        NoSuchSiteError: naming a hook point, and the layers that have it.
    """
    for point in settings.hook_points:
        having = [each for each in range(config.num_hidden_layers) if config.width(each, point)]
        if lacking := [layer for layer in settings.layers if layer not in having]:
            where = (
                f"layers {layers_named(having)} have it: extract them" if having else "none has it"
            )
            raise NoSuchSiteError(
                f"hook_points: {point} does not exist in layers {layers_named(lacking)} of this "
                f"model; {where}, or leave out {point}"
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
