"""Claim files, the last of which holds the token of the run that owns an output folder.

Usually there is only `claim.json`, which each run replaces. If a retention policy forbids that, a
run adds `claim-2.json`, `claim-3.json` and so on.
"""

from __future__ import annotations

import re
from contextlib import suppress

from activation_dataset.checksum import crc32c, to_text
from transforms.storage import Measured, RetentionError, delete_all, join, measure_beginning
from transforms.whole_file import write_whole

CLAIM_FILE = "claim.json"
"""File with the token of the run that may write; it exists from a run's start to its success."""

_CLAIM = re.compile(r"(?:-([1-9]\d*))?\.json")


def take_claim(folder: str, content: bytes) -> None:
    """Write this content to the last claim file."""
    number = max(_claims(folder), default=1)
    while True:
        try:
            write_whole(join(folder, _name(number)), content)
            return
        except RetentionError:
            number += 1


def holds_claim(folder: str, content: bytes) -> bool:
    """Return True if the last claim has this content."""
    return _ends_with(_claims(folder), content)


def release_claim(folder: str, content: bytes) -> None:
    """Delete all claims if the last one has this content; a retention policy may keep them."""
    claims = _claims(folder)
    if _ends_with(claims, content):
        with suppress(RetentionError):
            delete_all(join(folder, _name(number)) for number in claims)


def _claims(folder: str) -> dict[int, Measured]:
    """Return bytes and CRC32C of the claim files by number."""
    beginning = join(folder, "claim")
    found = {}
    for path, measured in measure_beginning(beginning).items():
        if match := _CLAIM.fullmatch(path.removeprefix(beginning)):
            found[int(match[1] or 1)] = measured
    return found


def _ends_with(claims: dict[int, Measured], content: bytes) -> bool:
    return bool(claims) and claims[max(claims)] == (len(content), to_text(crc32c(content)))


def _name(number: int) -> str:
    return CLAIM_FILE if number == 1 else f"claim-{number}.json"
