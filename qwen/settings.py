"""The settings of an extractor, from the flags to the worker. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass

from activation_dataset.format import POOLINGS, STORAGE_DTYPES, Pooling, StorageDtype
from activation_dataset.record import RecordKind
from activation_dataset.sites import (
    DEFAULT_HOOK_POINT,
    HookPoint,
    Site,
    in_forward_order,
    sites_of,
)
from qwen.config import ModelConfig


@dataclass(frozen=True)
class ExtractorSettings:
    """Everything that a worker needs to build its `ActivationExtractor`.

    Attributes:
      model_path: a local folder, a `gs://` folder, a hub id, with or without
        `@REVISION`, or a `random:` preset.
      layers: the layers to capture, counted from 0; sorted on construction.
      hook_points: where in each layer to capture; in forward order on construction.
      pooling: the `last` token or the `mean` of a sample, or `none` for every token.
      compute_dtype: the dtype of the parameters and the residual stream.
      storage_dtype: the dtype of the captured vectors.
      batch_size: token slots per device and step, in units of 512.
      mesh_shape: devices along (data, model); all local devices along data if None.
      compile_cache: a local or `gs://` folder for compiled programs; none if empty.
      ignore_config: fields of `config.json` to leave out although they are not understood.
      environment: variables that a device's runtime reads when it starts, such as `TPU_WORKER_ID`;
        variables that are set already keep their values.
      expected_config, weights_fingerprint, expected_ops: the model that the run was started with,
        and the operations that computed its finished files. A worker that finds another model, or
        has other operations, refuses to start. What is None or empty is not checked.
    """

    model_path: str
    layers: tuple[int, ...]
    hook_points: tuple[HookPoint, ...] = (DEFAULT_HOOK_POINT,)
    pooling: Pooling = "last"
    compute_dtype: StorageDtype = "bfloat16"
    storage_dtype: StorageDtype = "float32"
    batch_size: int = 8
    mesh_shape: tuple[int, int] | None = None
    compile_cache: str = ""
    ignore_config: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    expected_config: ModelConfig | None = None
    weights_fingerprint: str = ""
    expected_ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
          ValueError: naming the setting, its value and the values allowed.
        """
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))
        object.__setattr__(self, "hook_points", in_forward_order(self.hook_points))
        for name, allowed in (
            ("pooling", POOLINGS),
            ("compute_dtype", STORAGE_DTYPES),
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
        """Every hook point of every layer, in forward order."""
        return sites_of(self.layers, self.hook_points)

    def record_kind(self, hidden: int) -> RecordKind:
        """Return the kind of the records that vectors of `hidden` elements are stored in."""
        return RecordKind(self.pooling, self.storage_dtype, hidden)
