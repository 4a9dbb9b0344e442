"""Parsing of the command line into a `Config` and, for all other flags, Beam's options."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import create_runner

from activation_dataset.sites import DEFAULT_HOOK_POINT
from beam_pipeline import flag_values as values
from beam_pipeline.accelerators import (
    ACCELERATORS,
    AcceleratorSettings,
    check_mesh,
    runs_on_dataflow,
    worker_flags,
)
from beam_pipeline.config import DEFAULT_LAYERS, Config, ConfigError
from beam_pipeline.flags import FlagParser, build_parser
from qwen.settings import ExtractorSettings
from transforms.storage import in_bucket, is_url

LOGGER = logging.getLogger(__name__)

Settings = TypeVar("Settings")

LOCAL_RUNNER = "FnApiRunner"
"""Beam's in-process portable runner. `DirectRunner` would try to download another one first."""


# Names of buckets: https://cloud.google.com/storage/docs/buckets#naming
_BUCKET_FOLDER = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](?:/.*)?")


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
    config = _from_fields(Config, settings)
    if runs_on_dataflow(options):
        _refuse_local_paths(config)
        _check_staging(options)
    return config, options


def _refuse_local_paths(config: Config) -> None:
    """Refuse local paths, which workers on other machines do not have.

    A model may be part of the worker's image, so its path only leads to a warning.
    """
    if not in_bucket(config.output_dir):
        raise ConfigError(
            f"--output_dir={config.output_dir}: a folder on this machine, where Dataflow's "
            "workers cannot write; give a gs:// folder"
        )
    for path in config.tasks_file:
        if not is_url(path):
            raise ConfigError(
                f"--tasks_file={path}: a path on this machine, which Dataflow's workers cannot "
                "read; copy the tasks to a bucket and give their gs:// path"
            )
    model_path = config.extractor.model_path
    if os.path.exists(os.path.expanduser(model_path)):
        LOGGER.warning(
            "--model_path=%s: a path on this machine, which Dataflow's workers find only if their "
            "image has it; otherwise copy the model to a bucket and give its gs:// path",
            model_path,
        )


def _check_staging(options: PipelineOptions) -> None:
    """Refuse an impossible bucket, which Beam would replace with a bucket of its own."""
    google = options.view_as(GoogleCloudOptions)
    for flag in ("temp_location", "staging_location"):
        path = getattr(google, flag)
        if path and not _BUCKET_FOLDER.fullmatch(path):
            raise ConfigError(f"--{flag}={path}: must be gs://BUCKET/FOLDER in a bucket of yours")


def _from_fields(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in settings.items() if name in names})


def _beam_options(flags: list[str], accelerator: AcceleratorSettings | None) -> PipelineOptions:
    if not any(flag == "--runner" or flag.startswith("--runner=") for flag in flags):
        flags = [*flags, f"--runner={LOCAL_RUNNER}"]
    _refuse_unknown(flags)
    options = PipelineOptions(flags)
    runner = options.view_as(StandardOptions).runner
    try:
        create_runner(runner)
    except ValueError as error:
        raise ConfigError(f"--runner={runner}: {error}") from error
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
    parser = FlagParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        if hasattr(options, "_add_argparse_args"):
            options._add_argparse_args(parser)
    if unknown := parser.parse_known_args(list(flags))[1]:
        name, ours = unknown[0].partition("=")[0], list(build_parser()._option_string_actions)
        close = [each for each in ours if name.startswith("--") and each.startswith(name)]
        for known in (ours, list(parser._option_string_actions)):
            close = close or difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown flag {unknown[0]}.{hint} --help lists the flags of this job.")
