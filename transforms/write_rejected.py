"""The dead letters: every rejected task or document, in ``errors/rejected.jsonl``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from apache_beam.io.filesystems import FileSystems

from activation_dataset.format import ERRORS_FOLDER
from corpus.task import RejectedTask
from transforms.whole_file import join, read_if_exists, store_errors, write_whole


def errors_file(output_dir: str) -> str:
    return join(output_dir, ERRORS_FOLDER, "rejected.jsonl")


def write_rejected(rejected: Sequence[RejectedTask], output_dir: str) -> None:
    """Writes a JSON object a line, sorted; where nothing was rejected there is no file.

    Raises:
      OutputError: if it cannot be written.
    """
    path = errors_file(output_dir)
    ordered = sorted(rejected, key=lambda r: (r.source, r.task_id, r.reason, r.detail))
    lines = [json.dumps(asdict(item)) + "\n" for item in ordered]
    if lines:
        write_whole(path, "".join(lines).encode())
    elif read_if_exists(path) is not None:
        with store_errors(path):
            FileSystems.delete([path])


def count_reasons(rejected: Sequence[RejectedTask]) -> dict[str, int]:
    """Reason to number of rejected tasks, sorted."""
    return dict(sorted(Counter(item.reason for item in rejected).items()))
