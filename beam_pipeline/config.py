"""The settings of a run, validated as far as possible before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata as packages

from activation_dataset.format import Pooling, StorageDtype
from activation_dataset.metadata import RunDescription
from activation_dataset.record import RecordKind
from activation_dataset.sites import DEFAULT_HOOK_POINT, HookPoint
from beam_pipeline.accelerators import expand_accelerator
from corpus.augment import AugmentationPlan
from corpus.template import PromptTemplate
from qwen.source import ModelSource
from transforms.extract_activations import ExtractorSettings
from transforms.tokenize_tasks import LengthLimit, Overlength

PACKAGES_THAT_DECIDE_BYTES = ("flax", "jax", "jaxlib", "numpy", "tokenizers", "transformers")


class ConfigError(ValueError):
    """A setting that cannot be; the message names the flag and what is allowed."""


@dataclass(frozen=True)
class Config:
    """What the flags say. Attributes are named after the flags; units are those of ``--help``."""

    model_path: str
    tasks_file: tuple[str, ...]
    output_dir: str
    layers: tuple[int, ...] | None
    pooling: Pooling
    prompt_template: str
    max_length: int | None
    overlength: Overlength
    compute_dtype: StorageDtype
    storage_dtype: StorageDtype
    batch_size: int
    mesh_shape: tuple[int, int] | None
    compile_cache: str
    samples_per_shard: int
    augment: int
    augment_seed: int
    augment_keep_background: bool
    max_rejected: int | None
    max_output_bytes: int | None
    allow_nonfinite: bool
    overwrite: bool
    accelerator: str | None
    progress: bool = True
    hook_points: tuple[HookPoint, ...] = (DEFAULT_HOOK_POINT,)


@dataclass(frozen=True)
class Run:
    """A run that can be started: the settings, resolved against the model and the inputs.

    Attributes:
      patterns: where tasks are read from.
      layers: ascending.
      description: what ``metadata.json`` says of the run; the inputs are added at its end.
    """

    config: Config
    patterns: tuple[str, ...]
    template: PromptTemplate
    limit: LengthLimit
    layers: tuple[int, ...]
    description: RunDescription

    @property
    def record_kind(self) -> RecordKind:
        return RecordKind(
            self.config.pooling, self.config.storage_dtype, self.description.hidden_dim
        )

    @property
    def augmentation(self) -> AugmentationPlan | None:
        return augmentation_plan(self.config)

    @property
    def extractor(self) -> ExtractorSettings:
        name = self.config.accelerator
        return ExtractorSettings(
            model_path=self.config.model_path,
            weights_fingerprint=str(self.description.weights["fingerprint"]),
            layers=self.layers,
            hook_points=self.config.hook_points,
            pooling=self.config.pooling,
            compute_dtype=self.config.compute_dtype,
            storage_dtype=self.config.storage_dtype,
            batch_size=self.config.batch_size,
            mesh_shape=self.config.mesh_shape,
            compile_cache=self.config.compile_cache,
            environment=expand_accelerator(name).environment if name else (),
        )


def augmentation_plan(config: Config) -> AugmentationPlan | None:
    """Which variants of the tasks to use; None if only the tasks as they are."""
    if config.augment == 1:
        return None
    return AugmentationPlan(config.augment, config.augment_seed, config.augment_keep_background)


DEFAULT_LAYERS = tuple(range(10, 24))


def resolve_layers(layers: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """The layers to extract, ascending.

    Args:
      layers: as asked for; empty for all, None for 10 to 23.

    Raises:
      ConfigError: if the model does not have them.
    """
    chosen = tuple(range(num_layers)) if layers == () else layers or DEFAULT_LAYERS
    if outside := [layer for layer in chosen if not 0 <= layer < num_layers]:
        asked = "" if layers else "the default is 10-23; "
        which = f"layer {outside[0]} does" if len(outside) == 1 else f"{_listed(outside)} do"
        raise ConfigError(
            f"--layers_to_extract: {which} not exist ({asked}this model has {num_layers} layers, "
            f"0 to {num_layers - 1})"
        )
    return tuple(sorted(set(chosen)))


def _listed(layers: list[int]) -> str:
    first = ", ".join(map(str, layers[:8]))
    return f"layers {first}" + (f" and {len(layers) - 8} more" if len(layers) > 8 else "")


def fit_to_model(
    config: Config, source: ModelSource, template: PromptTemplate
) -> tuple[LengthLimit, tuple[int, ...]]:
    """The limit of prompts, and the layers to extract, ascending. Needs no weights.

    Raises:
      ConfigError: if a setting does not fit the model.
    """
    model = source.config
    if template.chat and not source.tokenizer().chat_template:
        raise ConfigError(
            f"--prompt_template {config.prompt_template}: the tokenizer of {config.model_path} has "
            "no chat template; use a prompt template with chat = false, such as digits"
        )
    limit = config.max_length or model.max_position_embeddings
    if limit > model.max_position_embeddings:
        raise ConfigError(
            f"--max_length={limit} is more than the {model.max_position_embeddings} positions "
            "that this model was made for (max_position_embeddings)"
        )
    layers = resolve_layers(config.layers, model.num_hidden_layers)
    return LengthLimit(limit, config.overlength), layers


def resolve(
    config: Config, source: ModelSource, template: PromptTemplate, patterns: tuple[str, ...]
) -> Run:
    """Brings settings, model and inputs together.

    Raises:
      ConfigError: if a setting does not fit the model.
    """
    limit, layers = fit_to_model(config, source, template)
    augmentation = augmentation_plan(config)
    description = RunDescription(
        model_name=config.model_path,
        layers_extracted=layers,
        hidden_dim=source.config.hidden_size,
        pooling=config.pooling,
        hook_points=config.hook_points,
        storage_dtype=config.storage_dtype,
        compute_dtype=config.compute_dtype,
        prompt_template=template.to_json(),
        tokenizer={"fingerprint": source.tokenizer_fingerprint()},
        weights={
            "fingerprint": source.weights_fingerprint(),
            "random": source.is_random,
        },
        inputs=(),
        settings={
            "augmentation": asdict(augmentation) if augmentation else None,
            "batch_size": config.batch_size,
            "max_length": limit.max_length,
            "mesh_shape": list(config.mesh_shape) if config.mesh_shape else None,
            "overlength": config.overlength,
            "samples_per_shard": config.samples_per_shard,
        },
        versions={name: packages.version(name) for name in PACKAGES_THAT_DECIDE_BYTES},
    )
    return Run(config, patterns, template, limit, layers, description)
