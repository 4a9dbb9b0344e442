"""Flags, grouped, to a ``Config``; what is not a flag of ours is left to Beam."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions

from activation_dataset.format import POOLINGS, STORAGE_DTYPES
from activation_dataset.sites import DEFAULT_HOOK_POINT, HOOK_POINTS, HookPoint
from beam_pipeline.accelerators import (
    ACCELERATORS,
    check_mesh,
    expand_accelerator,
    worker_flags,
)
from beam_pipeline.config import Config, ConfigError
from beam_pipeline.prices import SHIPPED as SHIPPED_PRICES
from beam_pipeline.prices import Prices, load_prices
from corpus.template import shipped_templates

LOCAL_RUNNER = "FnApiRunner"
"""Beam's in-process portable runner. ``DirectRunner`` would try to download another one first."""


DEFAULT_COMPILE_CACHE = "~/.cache/qwen-activations"


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text.lower() == "true"


BOOLEAN: dict[str, Any] = {"type": _boolean, "default": False, "metavar": "True|False"}
SWITCH: dict[str, Any] = BOOLEAN | {"nargs": "?", "const": True}
"""A flag that is true when it is there; a template's launcher can only write it as --flag=true."""


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage, a screenful, and leave."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults; where there is none, the help says itself what happens."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default is not None else action.help


def build_parser() -> argparse.ArgumentParser:
    """The parser of our own flags; ``--help`` shows them by group with defaults and units.

    It raises ``ConfigError`` for a malformed flag.
    """
    parser = _Parser(
        prog="python -m beam_pipeline",
        usage="%(prog)s --model_path MODEL --tasks_file PATH [PATH ...] [flags]",
        description="Extract the residual stream of Qwen2, layer by layer, as a dataset.",
        epilog="All other flags are Beam's, such as --runner, --direct_num_workers, "
        "--direct_running_mode, --project and --region. Without --runner the job runs here.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_path",
        required=True,
        metavar="MODEL",
        help="Qwen2 or Qwen2.5 checkpoint: a folder, a gs:// folder, a hub id, or "
        "random:Qwen2.5-0.5B or random:tiny for seeded random weights",
    )
    model.add_argument(
        "--compute_dtype", choices=STORAGE_DTYPES, default="bfloat16", help="dtype of the model"
    )
    model.add_argument(
        "--batch_size",
        type=_positive,
        default=8,
        metavar="SAMPLES",
        help="samples per device and step, counted as rows of 512 token slots: a longer sample "
        "takes several, short ones share one",
    )
    model.add_argument(
        "--mesh_shape",
        type=_mesh_shape,
        metavar="DATA,MODEL",
        help="devices of one worker along data and along model (default: all local devices, 1)",
    )

    tasks = parser.add_argument_group("tasks and prompts")
    tasks.add_argument(
        "--tasks_file",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="tasks in JSON, JSON Lines, Parquet or Arrow: files, folders, quoted globs, local or "
        "gs://",
    )
    tasks.add_argument(
        "--prompt_template",
        default="digits",
        metavar="TEMPLATE",
        help=f"one of {', '.join(shipped_templates())}, or the path of your own .toml",
    )
    tasks.add_argument(
        "--max_length",
        type=_positive,
        metavar="TOKENS",
        help="tokens that a prompt may have (default: the model's max_position_embeddings)",
    )
    tasks.add_argument(
        "--overlength",
        choices=("reject", "truncate"),
        default="reject",
        help="what becomes of longer prompts: a dead letter, or only their beginning is used",
    )
    tasks.add_argument(
        "--augment",
        type=_positive,
        default=1,
        metavar="VARIANTS",
        help="samples of each test input: the task as it is, and variants by symmetry, colours and "
        "order of its examples; their keys are in the sample ids",
    )
    tasks.add_argument(
        "--augment_seed",
        type=_natural,
        default=0,
        metavar="SEED",
        help="another seed gives other variants",
    )
    tasks.add_argument(
        "--augment_keep_background", **SWITCH, help="keep colour 0 as it is in all variants"
    )
    tasks.add_argument(
        "--max_rejected",
        type=_natural,
        metavar="TASKS",
        help="fail before the model runs if more tasks than this are rejected (default: no limit)",
    )

    capture = parser.add_argument_group("activations")
    capture.add_argument(
        "--layers_to_extract",
        nargs="+",
        action="extend",
        metavar="LAYER",
        help="layers, counted from 0: numbers, ranges such as 10-23, or all (default: 10-23)",
    )
    capture.add_argument(
        "--hook_points",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"where in each layer: one or several of {', '.join(HOOK_POINTS)}, as TransformerLens "
        "names them (default: resid_post, the residual stream after the layer)",
    )
    capture.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="last",
        help="one vector a sample, from its last token or their mean, or none: one for every token",
    )
    capture.add_argument(
        "--allow_nonfinite",
        **SWITCH,
        help="keep NaN and infinite activations, counted in the metadata, instead of failing",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir",
        metavar="FOLDER",
        help="folder of the dataset, local or gs:// (default: activations)",
    )
    output.add_argument(
        "--storage_dtype", choices=STORAGE_DTYPES, default="float32", help="dtype in the files"
    )
    output.add_argument(
        "--samples_per_shard",
        type=_positive,
        default=512,
        metavar="SAMPLES",
        help="samples in a file",
    )
    output.add_argument(
        "--max_output_bytes",
        type=_bytes,
        metavar="BYTES",
        help="fail before the model runs if the files would hold more than this, such as 500GB "
        "(default: no limit)",
    )
    output.add_argument("--overwrite", **SWITCH, help="replace what another run left in the folder")
    output.add_argument(
        "--no_progress", **SWITCH, help="do not show in the terminal how far a local run is"
    )
    output.add_argument(
        "--gcs_bucket",
        metavar="GS_PATH",
        help="with --upload_to_cloud True: another spelling of a gs:// --output_dir",
    )
    output.add_argument("--upload_to_cloud", **BOOLEAN, help="see --gcs_bucket")

    model.add_argument(
        "--compile_cache",
        default=DEFAULT_COMPILE_CACHE,
        metavar="FOLDER",
        help="where compiled programs are kept between runs, local or gs://",
    )

    workers = parser.add_argument_group("Dataflow workers")
    workers.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        metavar="NAME",
        help="what each worker has; sets machine type, worker_accelerator, processes, threads, "
        "disk and autoscaling, and refuses Beam flags that contradict it; one of "
        f"{', '.join(ACCELERATORS)} (default: Beam's flags)",
    )
    return parser


def build_plan_parser() -> argparse.ArgumentParser:
    """The parser of ``plan``: the flags of the job, and those of a prediction."""
    parser = build_parser()
    parser.prog += " plan"
    parser.description = (
        "Read and tokenize the tasks, and say what a run with these flags would compute and write, "
        "how long it would take and what it would cost. Nothing is written."
    )
    plan = parser.add_argument_group("plan")
    plan.add_argument(
        "--efficiency",
        type=_fraction,
        metavar="FRACTION",
        help="of the device's bfloat16 peak that the run reaches; measure it on a small run "
        "(default: 0.5 on TPU v5e, as its compiler predicts, 0.3 elsewhere, an assumption)",
    )
    plan.add_argument(
        "--prices",
        default=SHIPPED_PRICES,
        metavar="FILE",
        help="table of prices in TOML, of the form of the shipped one",
    )
    return parser


def parse_plan_flags(
    argv: Sequence[str],
) -> tuple[Config, PipelineOptions, float | None, Prices]:
    """The flags of ``plan``: those of the job, efficiency and prices.

    Raises:
      ValueError: as ``parse_flags``; PriceError for prices that cannot be read.
      SystemExit: after argparse has printed help.
    """
    ours, rest = build_plan_parser().parse_known_args(argv)
    config, options = _to_config(ours, rest)
    return config, options, ours.efficiency, load_prices(ours.prices)


def parse_flags(argv: Sequence[str]) -> tuple[Config, PipelineOptions]:
    """Our flags as a ``Config``, Beam's as its options.

    Raises:
      ConfigError: for flags that are missing, malformed, unknown, or contradict each other.
      SystemExit: after argparse has printed help.
    """
    return _to_config(*build_parser().parse_known_args(argv))


def _to_config(ours: argparse.Namespace, rest: list[str]) -> tuple[Config, PipelineOptions]:
    rest = _with_runner(rest)
    _refuse_unknown(rest)
    options = PipelineOptions(rest)
    workers = options.view_as(WorkerOptions).num_workers
    if workers is not None and workers < 1:
        raise ConfigError(f"--num_workers={workers} is no number of workers; take 1 or more")
    if ours.accelerator:
        settings = expand_accelerator(ours.accelerator)
        check_mesh(settings, ours.mesh_shape)
        if added := worker_flags(settings, options):
            print(f"--accelerator={ours.accelerator} sets", *added, file=sys.stderr)
        options = PipelineOptions([*rest, *added])
    config = Config(
        model_path=ours.model_path,
        tasks_file=tuple(ours.tasks_file),
        output_dir=_output_dir(ours.output_dir, ours.gcs_bucket, ours.upload_to_cloud),
        layers=parse_layers(ours.layers_to_extract) if ours.layers_to_extract else None,
        pooling=ours.pooling,
        prompt_template=ours.prompt_template,
        max_length=ours.max_length,
        overlength=ours.overlength,
        compute_dtype=ours.compute_dtype,
        storage_dtype=ours.storage_dtype,
        batch_size=ours.batch_size,
        mesh_shape=ours.mesh_shape,
        compile_cache=ours.compile_cache,
        samples_per_shard=ours.samples_per_shard,
        augment=ours.augment,
        augment_seed=ours.augment_seed,
        augment_keep_background=ours.augment_keep_background,
        max_rejected=ours.max_rejected,
        max_output_bytes=ours.max_output_bytes,
        allow_nonfinite=ours.allow_nonfinite,
        overwrite=ours.overwrite,
        accelerator=ours.accelerator,
        progress=not ours.no_progress,
        hook_points=parse_hook_points(ours.hook_points or [DEFAULT_HOOK_POINT]),
    )
    return config, options


def parse_layers(words: Sequence[str]) -> tuple[int, ...]:
    """``10 11``, ``10,11``, ``10-23`` or ``all`` to layer numbers; empty for all.

    Raises:
      ConfigError: naming the word that is none of these.
    """
    layers: list[int] = []
    for word in re.findall(r"[^\s,]+", " ".join(words)) or [""]:
        if word == "all":
            return ()
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(
                f"--layers_to_extract: {word!r} is not a layer; give numbers (10 11 12), a range "
                "(10-23), or all"
            )
        layers += range(first, last + 1)
    return tuple(layers)


def parse_hook_points(words: Sequence[str]) -> tuple[HookPoint, ...]:
    """``resid_mid mlp_out`` or ``resid_mid,mlp_out`` to hook points in forward order, each once.

    Raises:
      ConfigError: naming the word that is none.
    """
    named = re.findall(r"[^\s,]+", " ".join(words)) or [""]
    if unknown := [word for word in named if word not in HOOK_POINTS]:
        raise ConfigError(
            f"--hook_points: {unknown[0]!r} is not a hook point; give one or several of "
            f"{', '.join(HOOK_POINTS)}"
        )
    return tuple(each for each in HOOK_POINTS if each in named)


def _output_dir(output_dir: str | None, gcs_bucket: str | None, upload: bool) -> str:
    if upload or gcs_bucket:
        if not (upload and gcs_bucket):
            raise ConfigError(
                "--gcs_bucket and --upload_to_cloud True go together; the new spelling of both is "
                "--output_dir gs://BUCKET/FOLDER"
            )
        if output_dir is not None:
            raise ConfigError("give either --output_dir or --gcs_bucket, not both")
        output_dir = "gs://" + gcs_bucket.removeprefix("gs://")
    elif output_dir is None:
        output_dir = "activations"
    if "://" not in output_dir:
        output_dir = os.path.expanduser(output_dir)
    if not re.fullmatch(r"gs://[^/]+(/.*)?|(?!.*://).+", output_dir, re.DOTALL):
        raise ConfigError(
            f"--output_dir {output_dir!r}: must be a local folder or gs://BUCKET/FOLDER"
        )
    if found := re.search(r"[*?\[]", output_dir):
        # Beam would take them for wildcards, and list no file of the folder.
        raise ConfigError(f"--output_dir {output_dir!r}: must not hold {found[0]!r}")
    return output_dir.rstrip("/") or "/"


def _with_runner(flags: Sequence[str]) -> list[str]:
    named = any(flag == "--runner" or flag.startswith("--runner=") for flag in flags)
    return [*flags] if named else [*flags, f"--runner={LOCAL_RUNNER}"]


def _refuse_unknown(flags: Sequence[str]) -> None:
    """A mistyped flag must not be ignored, as Beam would.

    A template's launcher has had its parameters checked against the metadata, and may add flags
    that this Beam does not know.
    """
    if any(flag.startswith("--template_location") for flag in flags):
        return
    parser = _Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        if hasattr(options, "_add_argparse_args"):
            options._add_argparse_args(parser)
    unknown = parser.parse_known_args(list(flags))[1]
    if not unknown:
        return
    known = [*build_parser()._option_string_actions, *parser._option_string_actions]
    close = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"unknown flag {unknown[0]}.{hint} --help lists the flags of this job.")


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([1-9]\d{0,17})([kMGTP]B)?", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"expected bytes, such as 1000000, 500GB or 2TB, got {text!r}"
        )
    return int(match[1]) * 1000 ** ["B", "kB", "MB", "GB", "TB", "PB"].index(match[2] or "B")


def _fraction(text: str) -> float:
    if not re.fullmatch(r"0?\.\d{1,6}|1(\.0)?", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(
            f"expected a fraction above 0 and at most 1, such as 0.3, got {text!r}"
        )
    return float(text)


def _natural(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _mesh_shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4}),(\d{1,4})", text.replace(" ", ""))
    if not match or "0" in match.groups():
        raise argparse.ArgumentTypeError(
            f"expected two positive numbers, data,model, such as 8,1; got {text!r}"
        )
    return int(match[1]), int(match[2])
