"""Dead letters: every rejected task or document, in `errors/rejected.jsonl`.

`errors/notices.jsonl` has what is to be known about some that were used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from activation_dataset.format import ERRORS_FOLDER
from corpus.task import Notice, RejectedTask
from transforms.storage import delete, join
from transforms.whole_file import write_whole


def errors_file(output_dir: str) -> str:
    """Return the path of the dead letters."""
    return join(output_dir, ERRORS_FOLDER, "rejected.jsonl")


def notices_file(output_dir: str) -> str:
    """Return the path of the notices."""
    return join(output_dir, ERRORS_FOLDER, "notices.jsonl")


def write_lines(path: str, items: Sequence[RejectedTask | Notice]) -> None:
    """Write one JSON object per line, sorted; if there is nothing to write, there is no file."""
    ordered = sorted(items, key=lambda r: (r.source, r.task_id, r.reason, r.detail))
    lines = [json.dumps(asdict(item)) + "\n" for item in ordered]
    if lines:
        write_whole(path, "".join(lines).encode())
    else:
        delete(path)


def count_reasons(rejected: Sequence[RejectedTask]) -> dict[str, int]:
    """Return the number of rejected tasks by reason, sorted."""
    return dict(sorted(Counter(item.reason for item in rejected).items()))
