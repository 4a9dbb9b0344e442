"""Parsing of the command line into a `Config` and, for all other flags, Beam's options."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions

from activation_dataset.format import POOLINGS
from activation_dataset.sites import DEFAULT_HOOK_POINT, HOOK_POINTS
from activation_dataset.storage_dtype import COMPUTE_DTYPES, STORAGE_DTYPES
from beam_pipeline import flag_values as values
from beam_pipeline.accelerators import (
    ACCELERATORS,
    AcceleratorSettings,
    check_mesh,
    runs_on_dataflow,
    worker_flags,
)
from beam_pipeline.config import DEFAULT_LAYERS, Config, ConfigError
from corpus.template import shipped_templates
from qwen.settings import ExtractorSettings
from transforms.background_writer import WAITING_BYTES
from transforms.choose_tokens import TERMS

Settings = TypeVar("Settings")

LOCAL_RUNNER = "FnApiRunner"
"""Beam's in-process portable runner. `DirectRunner` would try to download another one first."""

DEFAULT_COMPILE_CACHE = "~/.cache/qwen-activations"

BOOLEAN: dict[str, Any] = {"type": values.boolean, "default": False, "metavar": "True|False"}
SWITCH: dict[str, Any] = BOOLEAN | {"nargs": "?", "const": True}
"""A flag that is true if given. The launcher of a template can only write --flag=true."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that adds defaults, except None, which the help text explains."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default is not None else action.help


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the job's own flags, which raises `ConfigError`."""
    parser = _Parser(
        prog="python -m beam_pipeline",
        usage="%(prog)s --model_path MODEL --tasks_file PATH [PATH ...] [flags]",
        description="Extract activations of Qwen, Llama and Mistral models into a dataset.",
        epilog="All other flags are Beam's, such as --runner, --direct_num_workers, "
        "--direct_running_mode, --project and --region. Without --runner the job runs on this "
        "machine.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    _add_model_flags(parser.add_argument_group("model"))
    _add_task_flags(parser.add_argument_group("tasks and prompts"))
    _add_activation_flags(parser.add_argument_group("activations"))
    _add_output_flags(parser.add_argument_group("output"))
    workers = parser.add_argument_group("Dataflow workers")
    workers.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        metavar="NAME",
        help="accelerator of each worker; sets its machine type, worker_accelerator, "
        "processes, threads, disk and autoscaling, and refuses Beam flags that contradict it; one "
        f"of {', '.join(ACCELERATORS)} (default: Beam's flags)",
    )
    return parser


def _add_model_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model_path",
        required=True,
        metavar="MODEL",
        help="Qwen, Llama or Mistral checkpoint: a folder, a gs:// folder, a hub id (ORG/NAME, or "
        "ORG/NAME@REVISION for a branch, tag or commit), or "
        "random:Qwen2.5-0.5B or random:tiny for seeded random weights",
    )
    group.add_argument(
        "--ignore_config",
        metavar="NAMES",
        help="comma-separated fields of config.json to ignore although they may change the "
        "activations; the error for an unsupported field names it (default: none)",
    )
    group.add_argument(
        "--compute_dtype",
        choices=COMPUTE_DTYPES,
        default="bfloat16",
        help="dtype in which the model computes",
    )
    group.add_argument(
        "--batch_size",
        type=values.positive,
        default=8,
        metavar="ROWS",
        help="rows of 512 token slots per device and step; short samples share a row, long "
        "samples take several",
    )
    group.add_argument(
        "--mesh_shape",
        type=values.mesh_shape,
        metavar="DATA,MODEL",
        help="devices of one worker along the data axis and the model axis (default: all local "
        "devices, 1)",
    )
    group.add_argument(
        "--compile_cache",
        default=DEFAULT_COMPILE_CACHE,
        metavar="FOLDER",
        help="local or gs:// folder that keeps compiled programs between runs",
    )


def _add_task_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tasks_file",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="tasks or texts in JSON, JSON Lines, Parquet or Arrow: files, folders with all "
        "subfolders, or quoted globs; local, gs://, hf://datasets/ORG/NAME[@REVISION]/PATH, s3:// "
        "or https://",
    )
    group.add_argument(
        "--text_field",
        metavar="NAME",
        help="key or column that holds the text, or the messages, of every record; a.b means b "
        "inside a. No other content is read (default: text, messages and other known names)",
    )
    group.add_argument(
        "--prompt_template",
        default="digits",
        metavar="TEMPLATE",
        help=f"one of {', '.join(shipped_templates())}, or the path of your own .toml file",
    )
    group.add_argument(
        "--max_length",
        type=values.positive,
        metavar="TOKENS",
        help="maximum length of a prompt (default: the model's max_position_embeddings)",
    )
    group.add_argument(
        "--overlength",
        choices=("reject", "truncate"),
        default="reject",
        help="reject longer prompts, or keep the beginning of documents; tasks "
        "are always rejected, since a prompt ends with the test input",
    )
    group.add_argument(
        "--context_size",
        type=values.positive,
        metavar="TOKENS",
        help="cut documents into windows of this many tokens, including repeated and prepended "
        "tokens; every other token is in exactly one window. Does not apply to tasks (default: a "
        "document is one sample of at most --max_length tokens)",
    )
    group.add_argument(
        "--context_overlap",
        type=values.natural,
        default=0,
        metavar="TOKENS",
        help="tokens that each window repeats from the previous one, as context whose vectors are "
        "neither stored nor averaged",
    )
    group.add_argument(
        "--prepend_bos",
        metavar="TOKEN",
        help="token to put before every sample: its text in the vocabulary, or its id; Qwen "
        "models define no such token (default: none)",
    )
    group.add_argument(
        "--augment",
        type=values.positive,
        default=1,
        metavar="VARIANTS",
        help="samples per test input: the task itself, and variants with other symmetry, colors "
        "and order of the examples; sample ids contain the keys of variants",
    )
    group.add_argument(
        "--augment_seed",
        type=values.natural,
        default=0,
        metavar="SEED",
        help="seed that chooses the variants",
    )
    group.add_argument(
        "--augment_keep_background", **SWITCH, help="keep color 0 unchanged in all variants"
    )
    group.add_argument(
        "--max_rejected",
        type=values.natural,
        metavar="COUNT",
        help="fail before the model runs if errors/rejected.jsonl, which lists rejected files, "
        "tasks and samples, would have more lines than this (default: no limit)",
    )


def _add_activation_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--layers_to_extract",
        nargs="+",
        action="extend",
        metavar="LAYER",
        help="layers, counted from 0: numbers, ranges such as 10-23, or all (default: "
        f"{DEFAULT_LAYERS})",
    )
    group.add_argument(
        "--hook_points",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"one or more of {', '.join(HOOK_POINTS)}, which every chosen layer must have "
        f"(default: {DEFAULT_HOOK_POINT}, the residual stream after the layer)",
    )
    group.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="last",
        help="last: the vector of the last token of each sample; mean: the mean over the chosen "
        "tokens of each sample; none: the vector of every chosen token",
    )
    group.add_argument(
        "--tokens",
        type=values.token_choice,
        default="all",
        metavar="CHOICE",
        help="tokens whose vectors are stored with --pooling none, or averaged with mean: one or "
        f"more of {', '.join(TERMS)}, joined by &; docs/concepts/tokens.md explains them",
    )
    group.add_argument(
        "--allow_nonfinite",
        **SWITCH,
        help="keep vectors with NaN or infinity and count them in the metadata, instead of failing",
    )


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output_dir",
        metavar="FOLDER",
        help="folder of the dataset, local or gs:// (default: activations)",
    )
    group.add_argument(
        "--storage_dtype",
        choices=STORAGE_DTYPES,
        default="float32",
        help="dtype of the stored vectors",
    )
    group.add_argument(
        "--samples_per_shard",
        type=values.positive_or_auto,
        default=512,
        metavar="SAMPLES|auto",
        help="samples per shard. auto: equal shards with files of at most 1 GiB, 8 to 20 shards "
        "per worker (--num_workers, --max_num_workers; --direct_num_workers does not count)",
    )
    group.add_argument(
        "--max_output_bytes",
        type=values.byte_count,
        metavar="BYTES",
        help="fail before the model runs if the files would hold more than this, such as 500GB "
        "(default: no limit)",
    )
    group.add_argument(
        "--upload_memory",
        type=values.byte_count,
        default=WAITING_BYTES,
        metavar="BYTES",
        help="memory of a worker process for blocks waiting to be written, such as 1GB; each open "
        "file in a bucket takes another 16 MiB",
    )
    group.add_argument("--overwrite", **SWITCH, help="replace the output of another run")
    group.add_argument("--no_progress", **SWITCH, help="show no progress bar in the terminal")
    group.add_argument(
        "--gcs_bucket",
        metavar="GS_PATH",
        help="output folder in a bucket, for --upload_to_cloud True; equivalent to a gs:// path in "
        "--output_dir",
    )
    group.add_argument("--upload_to_cloud", **BOOLEAN, help="see --gcs_bucket")


def build_plan_parser() -> argparse.ArgumentParser:
    """Return the parser of `plan`: the flags of the job and of the prediction."""
    parser = build_parser()
    parser.prog += " plan"
    parser.description = (
        "Read and tokenize the tasks, and predict what a run with these flags would compute "
        "and write, and its time and cost. Writes nothing."
    )
    plan = parser.add_argument_group("plan")
    plan.add_argument(
        "--efficiency",
        type=values.fraction,
        metavar="FRACTION",
        help="fraction of the device's bfloat16 peak that the run reaches; measure it on a small "
        "run (default: 0.5 on TPU v5e, as its compiler predicts; elsewhere 0.3, an assumption)",
    )
    plan.add_argument(
        "--device_price",
        type=values.price,
        metavar="PRICE",
        help="price of one device per hour, in your currency (default: the list price in USD)",
    )
    plan.add_argument(
        "--storage_bandwidth",
        type=values.byte_count,
        metavar="BYTES",
        help="bytes per second that the storage accepts from all workers together, such as 5GB "
        "(default: no limit but 50 MB/s for each file that a worker writes, an assumption)",
    )
    return parser


def parse_flags(
    argv: Sequence[str], parser: argparse.ArgumentParser | None = None
) -> tuple[Config, PipelineOptions]:
    """Parse the job's flags, by default with the parser of the job, and Beam's flags.

    Raises:
        ConfigError: for flags that are missing, malformed or unknown, or that contradict each
            other.
        SystemExit: after argparse has printed help.
    """
    ours, rest = (parser or build_parser()).parse_known_args(argv)
    accelerator = ACCELERATORS.get(ours.accelerator)
    if accelerator:
        check_mesh(accelerator, ours.mesh_shape)
    options = _beam_options(rest, accelerator)
    workers = _workers(options)
    if ours.samples_per_shard == "auto" and workers is None:
        raise ConfigError(
            "--samples_per_shard=auto needs a number of workers: give --num_workers, or "
            "--max_num_workers if Dataflow may add workers"
        )
    settings = vars(ours) | {
        "workers": workers or 1,
        "tasks_file": tuple(ours.tasks_file),
        "layers": values.parse_layers(ours.layers_to_extract or [DEFAULT_LAYERS]),
        "hook_points": values.parse_hook_points(ours.hook_points or [DEFAULT_HOOK_POINT]),
        "ignore_config": values.parse_names(ours.ignore_config or ""),
        "output_dir": values.parse_output_dir(
            ours.output_dir, ours.gcs_bucket, ours.upload_to_cloud
        ),
        "environment": accelerator.environment if accelerator else (),
    }
    settings["extractor"] = _from_fields(ExtractorSettings, settings)
    return _from_fields(Config, settings), options


def _from_fields(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in settings.items() if name in names})


def _beam_options(flags: list[str], accelerator: AcceleratorSettings | None) -> PipelineOptions:
    if not any(flag == "--runner" or flag.startswith("--runner=") for flag in flags):
        flags = [*flags, f"--runner={LOCAL_RUNNER}"]
    _refuse_unknown(flags)
    options = PipelineOptions(flags)
    workers = options.view_as(WorkerOptions).num_workers
    if workers is not None and workers < 1:
        raise ConfigError(f"--num_workers={workers}: must be at least 1")
    if accelerator and (added := worker_flags(accelerator, options)):
        print(f"--accelerator={accelerator.name} sets", *added, file=sys.stderr)
        options = PipelineOptions([*flags, *added])
    return options


def _workers(options: PipelineOptions) -> int | None:
    """Return the maximum number of workers of a run; None if Dataflow alone decides.

    `--direct_num_workers` does not count, so a local run writes the same bytes with any number of
    workers. With the `--num_workers` of a run on Dataflow, it writes the bytes of that run.
    """
    worker = options.view_as(WorkerOptions)
    counts = [worker.num_workers]
    if worker.autoscaling_algorithm != "NONE":
        counts.append(worker.max_num_workers)
    if given := [count for count in counts if count and count > 0]:
        return max(given)
    return None if runs_on_dataflow(options) else 1


def _refuse_unknown(flags: Sequence[str]) -> None:
    """Refuse a mistyped flag, which Beam would ignore.

    The launcher of a template has already compared its parameters with the metadata, and may add
    flags that this version of Beam does not know.
    """
    if any(flag.startswith("--template_location") for flag in flags):
        return
    parser = _Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        if hasattr(options, "_add_argparse_args"):
            options._add_argparse_args(parser)
    if unknown := parser.parse_known_args(list(flags))[1]:
        known = [*build_parser()._option_string_actions, *parser._option_string_actions]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown flag {unknown[0]}.{hint} --help lists the flags of this job.")
