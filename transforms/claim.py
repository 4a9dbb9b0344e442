"""The files that say which run owns an output folder: the last of them holds its token.

Usually this is `claim.json`, which each run replaces. Where a retention policy does not allow that,
a run adds `claim-2.json`, `claim-3.json` and so on.
"""

from __future__ import annotations

import re
from contextlib import suppress

from activation_dataset.checksum import crc32c, to_text
from transforms.storage import Measured, RetentionError, delete_all, join, measure_beginning
from transforms.whole_file import write_whole

CLAIM_FILE = "claim.json"
"""Holds the token of the run that may write; it exists from a run's start to its success."""

_CLAIM = re.compile(r"(?:-([1-9]\d*))?\.json")


def take_claim(folder: str, content: bytes) -> None:
    """Make the content that of the last claim."""
    number = max(_claims(folder), default=1)
    while True:
        try:
            write_whole(join(folder, _name(number)), content)
            return
        except RetentionError:
            number += 1


def holds_claim(folder: str, content: bytes) -> bool:
    """Return True if the last claim has this content."""
    claims = _claims(folder)
    return bool(claims) and claims[max(claims)] == (len(content), to_text(crc32c(content)))


def release_claim(folder: str, content: bytes) -> None:
    """Delete all claims if the last one has this content; a retention policy may keep them."""
    if holds_claim(folder, content):
        with suppress(RetentionError):
            delete_all(join(folder, _name(number)) for number in _claims(folder))


def _claims(folder: str) -> dict[int, Measured]:
    """Return the bytes and CRC32C of the claims by number."""
    beginning = join(folder, "claim")
    found = {}
    for path, measured in measure_beginning(beginning).items():
        if match := _CLAIM.fullmatch(path.removeprefix(beginning)):
            found[int(match[1] or 1)] = measured
    return found


def _name(number: int) -> str:
    return CLAIM_FILE if number == 1 else f"claim-{number}.json"
