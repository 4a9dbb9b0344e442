"""Flags of the job and of `plan`, with their help texts. All other flags are Beam's."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from activation_dataset.format import POOLINGS
from activation_dataset.sites import DEFAULT_HOOK_POINT, HOOK_POINTS
from activation_dataset.storage_dtype import COMPUTE_DTYPES, STORAGE_DTYPES
from beam_pipeline import flag_values as values
from beam_pipeline.accelerators import ACCELERATORS
from beam_pipeline.config import DEFAULT_LAYERS, ConfigError
from corpus.template import shipped_templates
from transforms.background_writer import WAITING_BYTES
from transforms.choose_tokens import TERMS

DEFAULT_COMPILE_CACHE = "~/.cache/qwen-activations"

BOOLEAN: dict[str, Any] = {"type": values.boolean, "default": False, "metavar": "True|False"}
SWITCH: dict[str, Any] = BOOLEAN | {"nargs": "?", "const": True}
"""A flag that is true if given. The launcher of a template can only write --flag=true."""


class FlagParser(argparse.ArgumentParser):
    """Parser that raises `ConfigError` for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError` with the message and a hint at the help."""
        raise ConfigError(f"{message} (see --help)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that adds defaults, except None, which the help text explains."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default is not None else action.help


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the job's own flags, which raises `ConfigError`."""
    parser = FlagParser(
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
        help="samples per test input: the task itself, and variants with different symmetry, "
        "colors and order of examples; sample ids contain the keys of variants",
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
        help="layers, counted from 0: numbers and ranges such as 10-23, or all; repeated flags add "
        f"up (default: {DEFAULT_LAYERS})",
    )
    group.add_argument(
        "--hook_points",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"one or more of {', '.join(HOOK_POINTS)}, which every chosen layer must have; "
        f"repeated flags add up (default: {DEFAULT_HOOK_POINT}, the residual stream after the "
        "layer)",
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
        help="samples per shard. auto: equal shards, 8 to 20 per worker (--num_workers, "
        "--max_num_workers; --direct_num_workers does not count), or more if a file would exceed "
        "1 GiB",
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
