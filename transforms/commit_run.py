"""`run.json`, written before the first activation: the settings that a resumed run must have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from activation_dataset.fields import FieldError, to_json
from activation_dataset.format import (
    ERRORS_FOLDER,
    METADATA_FILE,
    REJECTED_FILE,
    RUN_FILE,
    is_partial_file,
)
from activation_dataset.metadata import Metadata, RunDescription
from corpus.task import RejectedTask
from transforms.assign_shards import ShardPlan
from transforms.choose_tokens import parse_choice
from transforms.measure_output import OutputSize, check_output_size
from transforms.output_folder import OutputFolder, list_output
from transforms.report_inputs import InputReport
from transforms.storage import delete, join, read_if_exists
from transforms.write_rejected import NOTICES_FILE, errors_file, write_lines


class OtherRunError(ValueError):
    """The output folder holds the output of a run that differs from this one."""


class TooManyRejectedError(ValueError):
    """More rejections than the user allows."""


class NoSamplesError(ValueError):
    """There is nothing to extract."""


@dataclass(frozen=True)
class Limits:
    """Limits of the rejections and of the bytes of layer files and prompts; None for no limit."""

    max_rejected: int | None = None
    max_output_bytes: int | None = None


def configuration(run: RunDescription) -> dict[str, Any]:
    """Return the settings that determine the bytes, as in `run.json`, except the inputs."""
    fields: dict[str, Any] = to_json(run)
    del fields["inputs"]
    return fields


def differences(there: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield a line for each field in which two configurations differ."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in sorted(there.keys() | now.keys()):
            path = f"{name}.{key}" if name else key
            yield from differences(there.get(key), now.get(key), path)
    elif there != now:
        yield f"{name} is {json.dumps(there)} there, {json.dumps(now)} now"


def read_run(output_dir: str) -> tuple[Any, Any] | None:
    """Return the configuration and plan of the run that started a folder; None for a fresh folder.

    Lists of rejections and partial files are ignored: a run that rejected too much, or was killed
    at its start, leaves only these.

    Raises:
        OtherRunError: if `run.json` is damaged, or if the folder has output without it.
    """
    recorded = read_if_exists(join(output_dir, RUN_FILE))
    if recorded is None:
        for name in list_output(output_dir):
            if not (name.startswith(f"{ERRORS_FOLDER}/") or is_partial_file(name)):
                raise OtherRunError(
                    f"{output_dir} already holds output without {RUN_FILE}, such as {name}. "
                    "Choose another --output_dir, or replace it with --overwrite."
                )
        return None
    try:
        content = json.loads(recorded)
        return content["configuration"], content["plan"]
    except (ValueError, KeyError, TypeError) as error:
        raise OtherRunError(
            f"{join(output_dir, RUN_FILE)} cannot be read ({error}); if nothing there is needed, "
            "replace it with --overwrite"
        ) from error


def auto_workers_of_run(output_dir: str) -> int | None:
    """Return the number of workers for which `--samples_per_shard auto` sized a folder's shards.

    Returns:
        None if the folder is fresh, or if its run used a fixed number of samples per shard.

    Raises:
        OtherRunError: if `run.json` is damaged, or if the folder has output without it.
    """
    if (begun := read_run(output_dir)) is None:
        return None
    try:
        return int(begun[0]["settings"]["samples_per_shard"]["auto_for_workers"])
    except (KeyError, TypeError, ValueError):
        return None


def check_output_dir(output_dir: str, run: RunDescription, plan: ShardPlan | None = None) -> bool:
    """Check that a run may write here: the folder is fresh, or an identical run started it.

    Args:
        output_dir: folder.
        run: description of the run.
        plan: samples of the run, if they are known.

    Returns:
        True if an identical run started the folder; False if it is fresh.

    Raises:
        OtherRunError: if the folder has output without `run.json`, or if settings or samples
            differ; names them.
    """
    if (begun := read_run(output_dir)) is None:
        return False
    there, recorded = begun
    if changed := list(differences(there, configuration(run))):
        raise OtherRunError(
            f"{output_dir} holds the output of another run: " + "; ".join(changed) + ". Choose "
            "another --output_dir, use the same settings to resume, or replace it with --overwrite."
        )
    if plan is not None and (changed := list(differences(recorded, _totals(plan)))):
        raise OtherRunError(
            f"{output_dir} was started with other samples: the inputs, their file names or the "
            f"tokenizer have changed since ({'; '.join(changed)}). Choose another --output_dir, or "
            "--overwrite."
        )
    return True


def _totals(plan: ShardPlan) -> dict[str, Any]:
    """Return the plan as in `run.json`."""
    return {key: getattr(plan, key) for key in ("num_shards", "samples", "tokens", "digest")}


def commit_run(
    planned: tuple[ShardPlan, OutputSize],
    folder: OutputFolder,
    run: RunDescription,
    limits: Limits,
    report: InputReport,
) -> ShardPlan:
    """Write or compare `run.json`, and write the lists of rejections and notices.

    This comes before the expensive part. Unless the folder holds a complete dataset, its metadata
    is deleted before anything else changes, so that the folder counts as an unfinished run.

    Raises:
        OtherRunError: if the folder's run had other samples or settings; nothing is written then.
        OutputTooLargeError: if the files would be larger than the limit; nothing is written then.
        TooManyRejectedError: if there are more rejections than the limit.
        NoSamplesError: if no sample is left.
    """
    plan, size = planned
    folder.check()
    # Checked again, since another run may have written until it lost its claim.
    resumes = check_output_dir(folder.path, run, plan)
    check_output_size(size, len(run.sites), limits.max_output_bytes)
    sizes = list_output(folder.path)
    if METADATA_FILE in sizes and not _holds_all_files(folder.path, sizes):
        delete(join(folder.path, METADATA_FILE))
    for name, items in ((REJECTED_FILE, report.rejected), (NOTICES_FILE, report.notices)):
        if items or name in sizes:
            write_lines(join(folder.path, name), items)
    details = f"; {errors_file(folder.path)} says why each was" if report.rejected else ""
    check_samples(
        plan.samples,
        report.rejected,
        limits.max_rejected,
        details,
        str(run.settings.get("tokens", "all")),
    )
    if not resumes:
        content = {"configuration": configuration(run), "plan": _totals(plan)}
        folder.write(RUN_FILE, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return plan


def _holds_all_files(path: str, sizes: Mapping[str, int]) -> bool:
    """Return True if the folder has all files that the metadata lists."""
    content = read_if_exists(join(path, METADATA_FILE))
    try:
        metadata = Metadata.from_json(content or b"")
    except FieldError:
        return False
    files = (entry for shard in metadata.shards for entry in shard.all_files)
    return all(sizes.get(entry.path) == entry.bytes for entry in files)


def check_samples(
    samples: int,
    rejected: Sequence[RejectedTask],
    max_rejected: int | None,
    details: str = "",
    tokens: str = "all",
) -> None:
    """Check that there are samples, and not too many rejections.

    Args:
        samples: samples to extract.
        rejected: all rejections of the run.
        max_rejected: largest number of rejections that the user allows; None for any.
        details: end of the message about too many rejections.
        tokens: choice of tokens. Samples without a chosen token are left out.

    Raises:
        TooManyRejectedError: if there are more rejections; the message ends with `details`.
        NoSamplesError: if there is no sample.
    """
    reasons = sorted(Counter((each.kind, each.reason) for each in rejected).items())
    why = ", ".join(f"{kind} {reason}: {count}" for (kind, reason), count in reasons)
    counted = f"{len(rejected)} rejected" + (f" ({why})" if why else "")
    if max_rejected is not None and len(rejected) > max_rejected:
        raise TooManyRejectedError(f"{counted}, but --max_rejected allows {max_rejected}{details}")
    if not samples:
        unchosen = ""
        if tokens != "all":
            unchosen = f"; --tokens {tokens}: no token is chosen in the others"
        if parse_choice(tokens).needs_turns:
            unchosen += "; only the messages of chats have roles, and a token has one role"
        first = f"; the first: {rejected[0].detail}" if rejected else ""
        raise NoSamplesError(f"no sample is left to extract: {counted}{first}{details}{unchosen}")


@dataclass(eq=False)
class CommitRun(beam.PTransform):
    """Writes `run.json` and then passes the plan on, so that its consumers wait for that.

    The input is a singleton PCollection of the `ShardPlan` and the `OutputSize` of all samples.

    Attributes:
        folder, run, limits: the claimed output folder, the description and the limits of the run.
        report: a singleton PCollection of the `InputReport`.
    """

    folder: OutputFolder
    run: RunDescription
    limits: Limits
    report: beam.PCollection

    def expand(self, planned: beam.PCollection) -> beam.PCollection:
        return planned | "Commit" >> beam.Map(
            commit_run,
            self.folder,
            self.run,
            self.limits,
            report=beam.pvalue.AsSingleton(self.report),
        )
