"""The output folder, and the claim that names the run that may write to it.

Two runs may start in one folder, by mistake or because a scheduler considers the first one dead.
The later run resumes from the finished files, and the earlier one stops before it commits another
file. A run whose folder was removed stops in the same way.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from itertools import groupby

from activation_dataset.format import METADATA_FILE, RUN_FILE, is_partial_file, parse_data_file
from transforms.claim import CLAIM_FILE, holds_claim, release_claim, take_claim
from transforms.storage import delete_all, join, list_files
from transforms.whole_file import WholeFile, write_whole

_SITE_FOLDER = r"layer_\d+(?:_[a-z_]+)?"
_KNOWN = re.compile(
    r"metadata\.json|run\.json|certificate\.json|errors/(?:rejected|notices)\.jsonl|"
    rf"manifests/(?:{_SITE_FOLDER}|prompts)-\d{{5,}}-of-\d{{5,}}\.json"
)
_MAY_BE_PARTIAL = re.compile(rf"(?:(?:{_SITE_FOLDER}|prompts|manifests|errors|index)/)?[^/]+")


class ClaimLostError(RuntimeError):
    """The folder belongs to another run now, or was removed."""


@dataclass(frozen=True)
class OutputFolder:
    """A folder, local or `gs://`, that a run has claimed with its unique token.

    Methods raise `ClaimLostError` if the claim is lost, and `OutputError` if the store fails.
    """

    path: str
    token: str

    @classmethod
    def claim(cls, path: str | os.PathLike[str]) -> OutputFolder:
        """Claim the folder, whether or not another run has it.

        Raises:
            OutputError: if the store fails.
        """
        folder = cls(os.fspath(path), secrets.token_hex(8))
        take_claim(folder.path, folder._claim)
        return folder

    def check(self) -> None:
        """Check the claim. Call this before every change in the folder."""
        if not holds_claim(self.path, self._claim):
            raise ClaimLostError(
                f"{self.path} no longer belongs to this run: another run was started in it, or it "
                f"was removed ({CLAIM_FILE} has changed or is gone). This run stops; its finished "
                "files are valid. Let the other run end, or run the same command again."
            )

    def file(self, name: str) -> WholeFile:
        """Create a file in the folder that can be committed only while the claim holds."""
        return WholeFile(join(self.path, name), self.check)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file atomically, while the claim holds."""
        write_whole(join(self.path, name), content, self.check)

    def release(self) -> None:
        """Release the claim if this run still holds it."""
        release_claim(self.path, self._claim)

    @property
    def _claim(self) -> bytes:
        return (json.dumps({"run": self.token}) + "\n").encode()


def list_output(path: str) -> dict[str, int]:
    """Return the name and the bytes of every file of a run, except its card, claims and indexes.

    The metadata comes first and `run.json` last, so that deleting in this order never leaves
    metadata without its dataset or a layer file without the configuration of its run.
    """
    sizes = list_files(path)
    return {name: sizes[name] for name in sorted(filter(_is_output, sizes), key=_place)}


def _is_output(name: str) -> bool:
    if is_partial_file(name):
        return _MAY_BE_PARTIAL.fullmatch(name) is not None
    return _KNOWN.fullmatch(name) is not None or parse_data_file(name) is not None


def _place(name: str) -> tuple[int, str]:
    return (0 if name.startswith(METADATA_FILE) else 2 if name.startswith(RUN_FILE) else 1), name


def remove_output(path: str) -> None:
    """Delete the files that `list_output` finds: the metadata first, `run.json` last."""
    for _, names in groupby(list_output(path), key=lambda name: _place(name)[0]):
        delete_all(join(path, name) for name in names)


def remove_partial_files(path: str) -> dict[str, int]:
    """Delete partial files, and return the others as `list_output` does."""
    sizes = list_output(path)
    delete_all(join(path, name) for name in filter(is_partial_file, sizes))
    return {name: size for name, size in sizes.items() if not is_partial_file(name)}
