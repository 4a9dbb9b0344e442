"""A job that is ready to start: its flags, checked against the model and the inputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib import metadata as packages

from activation_dataset.metadata import RunDescription
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site, place_of
from beam_pipeline.config import DEFAULT_LAYERS, Config, ConfigError
from corpus.template import PromptTemplate, load_template
from qwen.settings import check_hook_points
from qwen.source import ModelSource, open_model
from qwen.tokenizer import digit_tokens
from transforms.find_inputs import Pattern, resolve_patterns
from transforms.tokenize_tasks import LengthLimit

PACKAGES_THAT_DECIDE_BYTES = ("flax", "jax", "jaxlib", "numpy", "tokenizers", "transformers")


@dataclass(frozen=True)
class Job:
    """A job whose flags fit its model. The weights of `source` have not been read."""

    config: Config
    patterns: tuple[Pattern, ...]
    template: PromptTemplate
    limit: LengthLimit
    source: ModelSource

    @property
    def record_kinds(self) -> dict[Site, RecordKind]:
        """The kind of the records that the job writes for each site."""
        settings, width = self.config.extractor, self.source.config.width
        return {site: settings.record_kind(width(*place_of(site))) for site in settings.sites}

    def describe(self) -> RunDescription:
        """Check the weights, and return all that decides about the bytes, except the inputs.

        Raises:
          CheckpointError: if the weights are missing, damaged or not those of the model.
        """
        config, settings, source = self.config, self.config.extractor, self.source
        source.check_weights()
        augmentation, hidden = config.augmentation, source.config.hidden_size
        widths = {site: kind.hidden for site, kind in self.record_kinds.items()}
        return RunDescription(
            model_name=source.name,
            layers_extracted=settings.layers,
            hidden_dim=hidden,
            widths={site: width for site, width in widths.items() if width != hidden},
            pooling=settings.pooling,
            hook_points=settings.hook_points,
            storage_dtype=settings.storage_dtype,
            compute_dtype=settings.compute_dtype,
            prompt_template=self.template.to_json(),
            model=source.config.to_json(),
            tokenizer={
                "fingerprint": source.tokenizer_fingerprint(),
                "digits": digit_tokens(source.tokenizer()),
            },
            weights={
                "fingerprint": source.weights_fingerprint(),
                "random": source.is_random,
                "commit": source.files.commit(),
            },
            inputs=(),
            settings={
                "augmentation": asdict(augmentation) if augmentation else None,
                "batch_size": settings.batch_size,
                "ignore_config": list(settings.ignore_config),
                "max_length": self.limit.max_length,
                "mesh_shape": list(settings.mesh_shape) if settings.mesh_shape else None,
                "overlength": config.overlength,
                "samples_per_shard": config.samples_per_shard,
                "text_field": config.text_field,
            },
            versions={name: packages.version(name) for name in PACKAGES_THAT_DECIDE_BYTES},
        )


def open_job(config: Config) -> Job:
    """Find the inputs, open the model without its weights, and check that the flags fit.

    Raises:
      ValueError: of several kinds, each naming the flag or file and what to do.
    """
    patterns = resolve_patterns(config.tasks_file, config.output_dir)
    template = load_template(config.prompt_template)
    source = open_model(config.extractor.model_path, config.extractor.ignore_config)
    tokenizer = source.tokenizer()
    if template.chat and not tokenizer.chat_template:
        raise ConfigError(
            f"--prompt_template {config.prompt_template}: the tokenizer of {source.name} has no "
            "chat template; choose a prompt template with chat = false, such as digits"
        )
    longest = source.config.max_position_embeddings
    limit = LengthLimit(config.max_length or longest, config.overlength, source.config.vocab_size)
    if limit.max_length > longest:
        raise ConfigError(
            f"--max_length={limit.max_length} is more than the {longest} positions that this "
            "model was made for (max_position_embeddings)"
        )
    num_layers = source.config.num_hidden_layers
    extractor = config.extractor.with_layers_of(num_layers)
    if outside := [layer for layer in extractor.layers if layer >= num_layers]:
        raise ConfigError(
            f"--layers_to_extract: layer {outside[0]} does not exist; this model has {num_layers} "
            f"layers, 0 to {num_layers - 1}, and the default is {DEFAULT_LAYERS}"
        )
    check_hook_points(extractor, source.config)
    extractor = replace(extractor, model_path=source.pinned_path)
    return Job(replace(config, extractor=extractor), patterns, template, limit, source)
