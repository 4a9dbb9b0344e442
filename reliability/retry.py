"""Failure and retry of every bundle after all its work, as on Dataflow.

    python -m reliability.retry

Beam's local runner gives up at the first failure. This script runs each bundle twice. In the first
run, the worker fails after it has called every `finish_bundle`; Beam drops its output and tears
down its DoFns. New DoFns then run the bundle again.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from apache_beam.runners.portability.fn_api_runner.fn_runner import BundleManager
from apache_beam.runners.worker.bundle_processor import BundleProcessor

from beam_pipeline.command import main as command
from reliability.job import Job, digests

INJECTED = "injected: the bundle fails after its work"


class Retries:
    """Number of failed bundles, and a flag that makes the current bundle fail."""

    def __init__(self) -> None:
        self.bundles = 0
        self.failing = False


@contextmanager
def every_bundle_fails_once() -> Iterator[Retries]:
    """Make every bundle of Beam's local runner, with one worker in this process, fail once."""
    retries = Retries()
    run_bundle, work = BundleManager.process_bundle, BundleProcessor.process_bundle

    def run_twice(manager: Any, *arguments: Any, **options: Any) -> Any:
        retries.failing = True
        try:
            run_bundle(manager, *arguments, **options | {"dry_run": True})
        except RuntimeError as error:
            if INJECTED not in str(error):
                raise
            retries.bundles += 1
        finally:
            retries.failing = False
        return run_bundle(manager, *arguments, **options)

    def fail_after_work(processor: Any, *arguments: Any) -> Any:
        result = work(processor, *arguments)
        if retries.failing:
            raise RuntimeError(INJECTED)
        return result

    with (
        mock.patch.object(BundleManager, "process_bundle", run_twice),
        mock.patch.object(BundleProcessor, "process_bundle", fail_after_work),
    ):
        yield retries


def retry_all(job: Job, folder: Path) -> int:
    """Run the job with and without failures, compare the files, and count the failed bundles."""
    assert command(job.arguments(folder / "expected")) == 0
    logging.disable()
    try:
        with every_bundle_fails_once() as retries:
            assert command(job.arguments(folder / "retried")) == 0
    finally:
        logging.disable(logging.NOTSET)
    assert digests(folder / "retried") == digests(folder / "expected")
    return retries.bundles


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="retry-") as name:
        folder = Path(name)
        bundles = retry_all(Job(folder / "compiled"), folder)
    print(f"{bundles} bundles failed after their work and were retried: the same bytes")


if __name__ == "__main__":
    main()
