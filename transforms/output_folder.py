"""The folder that a run writes to, and which run that is: the one that claimed it last.

Two runs may be started into one folder, by mistake or by a scheduler that takes the first for dead.
The later one goes on from what the earlier one has finished; the earlier one stops before it gives
another file its name. The same stops a run whose folder was removed, instead of writing on into a
new one of which the beginning is missing.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass

from apache_beam.io.filesystems import FileSystems

from activation_dataset.format import (
    METADATA_FILE,
    RUN_FILE,
    is_partial_file,
    parse_prompts_file,
    parse_shard_file,
)
from transforms.whole_file import WholeFile, join, read_if_exists, store_errors, write_whole

CLAIM_FILE = "claim.json"
"""Holds the token of the run that may write; it is there from a run's start to its success."""

_KNOWN = re.compile(r"metadata\.json|run\.json|certificate\.json|errors/rejected\.jsonl")
_MAY_BE_PARTIAL = re.compile(r"(?:(?:layer_\d+(?:_[a-z_]+)?|prompts|errors|index)/)?[^/]+")


class ClaimLostError(RuntimeError):
    """The folder belongs to another run now, or was removed."""


@dataclass(frozen=True)
class OutputFolder:
    """A folder that a run has claimed.

    Attributes:
      path: local or ``gs://``.
      token: of the run; no other has it.
    """

    path: str
    token: str

    @classmethod
    def claim(cls, path: str) -> OutputFolder:
        """Takes the folder over from whichever run has it.

        Raises:
          OutputError: if it cannot be written.
        """
        folder = cls(path, secrets.token_hex(8))
        write_whole(join(path, CLAIM_FILE), folder._claim)
        return folder

    def check(self) -> None:
        """To be called before anything in the folder changes.

        Raises:
          ClaimLostError: if the claim is another run's, or gone.
        """
        if read_if_exists(join(self.path, CLAIM_FILE)) != self._claim:
            raise ClaimLostError(
                f"{self.path} is no longer this run's: another run was started into it, or it was "
                f"removed ({CLAIM_FILE} has changed or is gone). This run stops; what it has "
                "finished is sound. Let the other run end, or run the same command again."
            )

    def file(self, name: str) -> WholeFile:
        """A file below the folder, which gets its name only while the claim holds."""
        return WholeFile(join(self.path, name), self.check)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, whole, while the claim holds.

        Raises:
          ClaimLostError: if it does not hold.
          OutputError: if it cannot be written.
        """
        write_whole(join(self.path, name), content, self.check)

    def release(self) -> None:
        """Ends the claim, where it is still this run's."""
        path = join(self.path, CLAIM_FILE)
        if read_if_exists(path) == self._claim:
            delete(path)

    @property
    def _claim(self) -> bytes:
        return (json.dumps({"run": self.token}) + "\n").encode()


def list_output(path: str) -> dict[str, int]:
    """Name to bytes of all files that a run may have written.

    The metadata comes first and ``run.json`` last, so that what deletes them in this order leaves
    no commit without its dataset, and no layer file without the configuration of its run.
    """
    root = path.rstrip("/") + "/"
    with store_errors(path):
        matches = FileSystems.match([join(path, "**")])[0].metadata_list
    sizes = {match.path.removeprefix(root): match.size_in_bytes for match in matches}
    return {name: sizes[name] for name in sorted(filter(_is_output, sizes), key=_place)}


def _is_output(name: str) -> bool:
    if is_partial_file(name):
        return _MAY_BE_PARTIAL.fullmatch(name) is not None
    known = _KNOWN.fullmatch(name) or parse_shard_file(name) or parse_prompts_file(name)
    return known is not None


def _place(name: str) -> tuple[int, str]:
    return (0 if name.startswith(METADATA_FILE) else 2 if name.startswith(RUN_FILE) else 1), name


def remove_output(path: str) -> None:
    """Deletes what ``list_output`` finds, in its order."""
    for name in list_output(path):
        delete(join(path, name))


def remove_partial_files(path: str) -> None:
    """Deletes what writers that were interrupted left behind."""
    for name in filter(is_partial_file, list_output(path)):
        delete(join(path, name))


def delete(path: str) -> None:
    """Deletes a file, if it is there.

    Raises:
      OutputError: if it is there still.
    """
    with store_errors(path):
        try:
            FileSystems.delete([path])
        except OSError:
            # Another run, whose folder this was, may have renamed or deleted it.
            if FileSystems.exists(path):
                raise
