"""The settings of a run, parsed from the flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from corpus.augment import AugmentationPlan
from qwen.settings import ExtractorSettings
from transforms.tokenize_tasks import Overlength

DEFAULT_LAYERS = "10-23"
"""Default of `--layers_to_extract`."""


class ConfigError(ValueError):
    """An impossible setting; the message names the flag and what is allowed."""


@dataclass(frozen=True)
class Config:
    """Flags of a run. Attributes are named after the flags; `--help` gives their units.

    Attributes:
        extractor: flags of the model and of the activations. Until the model is opened, its
            `layers` are empty for all layers, and it has no `weights_fingerprint`.
        workers: number of workers of the runner, from Beam's flags.
        efficiency: flag of `plan` only.
        device_price: flag of `plan` only.
        storage_bandwidth: flag of `plan` only.
    """

    extractor: ExtractorSettings
    tasks_file: tuple[str, ...]
    text_field: str | None
    prompt_template: str
    max_length: int | None
    overlength: Overlength
    context_size: int | None
    context_overlap: int
    prepend_bos: str | None
    tokens: str
    augment: int
    augment_seed: int
    augment_keep_background: bool
    max_rejected: int | None
    allow_nonfinite: bool
    output_dir: str
    samples_per_shard: int | Literal["auto"]
    max_output_bytes: int | None
    upload_memory: int
    overwrite: bool
    no_progress: bool
    accelerator: str | None
    workers: int
    efficiency: float | None = None
    device_price: float | None = None
    storage_bandwidth: int | None = None

    @property
    def augmentation(self) -> AugmentationPlan | None:
        """Variants of the tasks to use; None to use the tasks alone."""
        if self.augment == 1:
            return None
        return AugmentationPlan(self.augment, self.augment_seed, self.augment_keep_background)
