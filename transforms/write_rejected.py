"""Rejected files, tasks, documents and samples in `errors/rejected.jsonl`.

`errors/notices.jsonl` has remarks on inputs that are used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from activation_dataset.format import ERRORS_FOLDER, REJECTED_FILE
from corpus.task import Notice, RejectedTask
from transforms.storage import delete, join
from transforms.whole_file import write_whole

NOTICES_FILE = f"{ERRORS_FOLDER}/notices.jsonl"


def errors_file(output_dir: str) -> str:
    """Return the path of the list of rejections."""
    return join(output_dir, REJECTED_FILE)


def write_lines(path: str, items: Sequence[RejectedTask | Notice]) -> None:
    """Write one JSON object per line, sorted. Without items, delete the file."""
    ordered = sorted(items, key=lambda r: (r.source, r.task_id, r.reason, r.detail))
    lines = [json.dumps(asdict(item)) + "\n" for item in ordered]
    if lines:
        write_whole(path, "".join(lines).encode())
    else:
        delete(path)
