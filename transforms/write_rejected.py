"""Dead letters: every rejected file, task, document and sample, in `errors/rejected.jsonl`.

`errors/notices.jsonl` has what is to be known about some that were used.
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
    """Return the path of the dead letters."""
    return join(output_dir, REJECTED_FILE)


def write_lines(path: str, items: Sequence[RejectedTask | Notice]) -> None:
    """Write one JSON object per line, sorted; if there is nothing to write, there is no file."""
    ordered = sorted(items, key=lambda r: (r.source, r.task_id, r.reason, r.detail))
    lines = [json.dumps(asdict(item)) + "\n" for item in ordered]
    if lines:
        write_whole(path, "".join(lines).encode())
    else:
        delete(path)
