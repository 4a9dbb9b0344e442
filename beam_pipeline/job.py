"""Job that is ready to start, with flags checked against the model and the inputs."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from importlib import metadata as packages

from activation_dataset.fields import Json
from activation_dataset.metadata import RunDescription
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site, place_of
from beam_pipeline.config import DEFAULT_LAYERS, Config, ConfigError
from corpus.template import PromptTemplate, load_template
from qwen.settings import check_hook_points
from qwen.source import ModelSource, open_model
from qwen.tokenizer import digit_tokens
from transforms.auto_shards import AutoShards
from transforms.choose_tokens import parse_choice
from transforms.commit_run import auto_workers_of_run
from transforms.find_inputs import Pattern, resolve_patterns
from transforms.tokenize_tasks import SampleRules

LOGGER = logging.getLogger(__name__)

PACKAGES_THAT_DECIDE_BYTES = ("flax", "jax", "jaxlib", "numpy", "tokenizers", "transformers")


@dataclass(frozen=True)
class Job:
    """Job whose flags fit its model. The weights of `source` are not loaded.

    Attributes:
        auto_workers: number of workers that `--samples_per_shard auto` counts. A resumed run uses
            the number of the run that started the output folder, so it completes the same files
            with fewer or more workers.
    """

    config: Config
    patterns: tuple[Pattern, ...]
    template: PromptTemplate
    rules: SampleRules
    source: ModelSource
    auto_workers: int

    @property
    def record_kinds(self) -> dict[Site, RecordKind]:
        """Kind of record by site."""
        settings, width = self.config.extractor, self.source.config.width
        return {site: settings.record_kind(width(*place_of(site))) for site in settings.sites}

    @property
    def samples_per_shard(self) -> int | AutoShards:
        """Samples per shard, or the rule that chooses their number."""
        if self.config.samples_per_shard != "auto":
            return self.config.samples_per_shard
        return AutoShards(self.auto_workers, tuple(dict.fromkeys(self.record_kinds.values())))

    def _bos(self) -> dict[str, Json] | None:
        if (token_id := self.rules.bos) is None:
            return None
        if (tokenizer := self.source.tokenizer_if_any()) is None:
            return {"id": token_id}
        return {"id": token_id, "token": str(tokenizer.convert_ids_to_tokens(token_id))}

    def describe(self) -> RunDescription:
        """Check the weights, and return all settings that determine the bytes, except the inputs.

        Raises:
            CheckpointError: if the weights are missing or damaged, or belong to another model.
        """
        config, settings, source = self.config, self.config.extractor, self.source
        source.check_weights()
        augmentation, hidden = config.augmentation, source.config.hidden_size
        widths = {site: kind.hidden for site, kind in self.record_kinds.items()}
        tokenizer = source.tokenizer_if_any()
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
                "digits": digit_tokens(tokenizer) if tokenizer else [],
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
                "context_overlap": config.context_overlap,
                "context_size": config.context_size,
                "ignore_config": list(settings.ignore_config),
                "input_commits": {
                    name: commit for each in self.patterns for name, commit in each.commits.items()
                },
                "max_length": self.rules.max_length,
                "mesh_shape": list(settings.mesh_shape) if settings.mesh_shape else None,
                "overlength": config.overlength,
                "prepend_bos": self._bos(),
                "samples_per_shard": {"auto_for_workers": self.auto_workers}
                if config.samples_per_shard == "auto"
                else config.samples_per_shard,
                "text_field": config.text_field,
                "tokens": config.tokens,
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
    tokenizer = source.tokenizer_if_any()
    if template.chat and not (tokenizer and tokenizer.chat_template):
        raise ConfigError(
            f"--prompt_template {config.prompt_template}: the tokenizer of {source.name} has no "
            "chat template; choose a prompt template with chat = false, such as digits"
        )
    rules = _rules(config, source)
    num_layers = source.config.num_hidden_layers
    extractor = config.extractor.with_layers_of(num_layers)
    if outside := [layer for layer in extractor.layers if layer >= num_layers]:
        raise ConfigError(
            f"--layers_to_extract: layer {outside[0]} does not exist; this model has {num_layers} "
            f"layers, 0 to {num_layers - 1}, and the default is {DEFAULT_LAYERS}"
        )
    check_hook_points(extractor, source.config)
    extractor = replace(extractor, model_path=source.pinned_path)
    workers = _auto_workers(config)
    return Job(replace(config, extractor=extractor), patterns, template, rules, source, workers)


def _auto_workers(config: Config) -> int:
    """Return the `auto_workers` of a job."""
    if config.samples_per_shard != "auto" or config.overwrite:
        return config.workers
    there = auto_workers_of_run(config.output_dir)
    if there not in (None, config.workers):
        LOGGER.warning(
            "%s was started for %s workers; --samples_per_shard=auto keeps the shards of that run",
            config.output_dir,
            there,
        )
    return there or config.workers


def _rules(config: Config, source: ModelSource) -> SampleRules:
    """Return the rules for samples, from the flags and the model.

    Raises:
        ConfigError: if flags contradict each other or do not fit the model.
    """
    longest = source.config.max_position_embeddings
    for flag, value in (
        ("--max_length", config.max_length),
        ("--context_size", config.context_size),
    ):
        if value is not None and value > longest:
            raise ConfigError(
                f"{flag}={value} exceeds the {longest} positions that this model supports "
                "(max_position_embeddings)"
            )
    reserved = config.context_overlap + (config.prepend_bos is not None)
    if config.context_size is None:
        if config.context_overlap:
            raise ConfigError("--context_overlap needs --context_size, the tokens of a window")
    elif reserved >= config.context_size:
        raise ConfigError(
            f"--context_size={config.context_size} leaves no room for new tokens: repeated and "
            f"prepended tokens take {reserved}"
        )
    elif config.overlength == "truncate":
        raise ConfigError(
            "--overlength=truncate and --context_size contradict each other: windows keep every "
            "token of a document"
        )
    if config.tokens != "all" and config.extractor.pooling == "last":
        raise ConfigError(
            f"--tokens={config.tokens} needs --pooling none, to store the vectors of these tokens, "
            "or mean, to average them"
        )
    bos = None if config.prepend_bos is None else _token_id(config.prepend_bos, source)
    choice = parse_choice(config.tokens)
    if choice.needs_special_ids and source.tokenizer_if_any() is None:
        raise ConfigError(
            f"--tokens={config.tokens}: {source.name} has no tokenizer to tell which tokens are "
            "special; leave out no_special"
        )
    return SampleRules(
        config.max_length or longest,
        config.overlength,
        config.context_size,
        config.context_overlap,
        bos,
        choice,
    ).of_model(source)


def _token_id(named: str, source: ModelSource) -> int:
    """Return the id of the token that `--prepend_bos` names.

    Raises:
        ConfigError: if the model has no such token.
    """
    tokenizer = source.tokenizer_if_any()
    vocabulary = tokenizer.get_vocab() if tokenizer else {}
    token_id = int(named) if named.isdecimal() else vocabulary.get(named)
    known = tokenizer is None or token_id in vocabulary.values()
    if token_id is None or token_id >= source.config.vocab_size or not known:
        special = ", ".join(map(str, tokenizer.all_special_tokens[:4] if tokenizer else ["none"]))
        raise ConfigError(
            f"--prepend_bos {named}: not a token of this model; give the text of one token, such "
            f"as {special}, or its id"
        )
    return token_id
