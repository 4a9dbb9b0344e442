"""Files that appear whole or not at all, on a local disk or in a bucket."""

from __future__ import annotations

import os
import secrets
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from activation_dataset.format import partial_file


class OutputError(OSError):
    """Output that could not be written; the message says where and what to check."""


class WholeFile:
    """A file being written under a partial name; ``commit`` moves it to its own in one step.

    Nothing reads a partial name, and a name is drawn for each attempt, so that attempts at the same
    file do not meet. What is written must be a function of the file's name.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._partial = partial_file(path, secrets.token_hex(8))
        try:
            folder = FileSystems.split(path)[0]
            if "://" not in folder:
                os.makedirs(folder, exist_ok=True)
            self.stream: BinaryIO = FileSystems.create(
                self._partial, compression_type=CompressionTypes.UNCOMPRESSED
            )
        except (OSError, BeamIOError) as error:
            raise OutputError(
                f"{path} cannot be written ({error}); check that --output_dir is a folder or "
                "bucket that this user may write to"
            ) from error

    def commit(self, crc32c: str | None = None) -> None:
        """Closes the file and gives it its name, replacing what had it.

        Args:
          crc32c: base64 checksum of all that was written, compared with the one that the store
            computed where it computes one.

        Raises:
          OutputError: if it could not be closed, compared or moved; the name is as it was before.
        """
        try:
            if "://" not in self.path:
                self.stream.flush()
                os.fsync(self.stream.fileno())
            self.stream.close()
            if crc32c is not None and self.path.startswith("gs://"):
                stored = FileSystems.checksum(self._partial)
                if stored != crc32c:
                    raise OutputError(f"{self.path}: stored CRC32C {stored}, sent {crc32c}")
            FileSystems.rename([self._partial], [self.path])
        except (OSError, BeamIOError) as error:
            self.discard()
            raise OutputError(f"{self.path} could not be completed ({error})") from error

    def discard(self) -> None:
        """Gives up; removes what was written as far as possible."""
        try:
            self.stream.close()
            FileSystems.delete([self._partial])
        except (OSError, BeamIOError):
            pass  # A partial file that stays is recognised by its name.


def write_whole(path: str, content: bytes) -> None:
    """Writes a small file, whole.

    Raises:
      OutputError: if it cannot be written.
    """
    file = WholeFile(path)
    try:
        file.stream.write(content)
    except OSError as error:
        file.discard()
        raise OutputError(f"{path} cannot be written ({error})") from error
    file.commit()


def join(folder: str, *parts: str) -> str:
    """A path below a local folder or a ``gs://`` one; parts may hold "/"."""
    return FileSystems.join(folder, *(piece for part in parts for piece in part.split("/")))


def read_if_exists(path: str) -> bytes | None:
    """The content of a small file, or None if there is none."""
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        content: bytes = stream.read()
        return content
