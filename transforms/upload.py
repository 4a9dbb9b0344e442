"""Upload of an object to Cloud Storage, where it appears when it is complete.

Each upload names the generation that it replaces, or none, so that it cannot replace an unknown
object. If the store refuses because the object has changed, an object with equal content counts as
success: another attempt wrote it, or the response to this one was lost.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from google.api_core.exceptions import Forbidden, PreconditionFailed
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.fileio import BlobWriter

from activation_dataset.checksum import Buffer, crc32c, extend, to_text
from transforms.storage import OutputError, blob_of, object_if_exists

ONE_REQUEST_BYTES = 8 << 20
"""Bytes of the largest object that one request uploads. Google's client allows no more."""

UPLOAD_BYTES = 16 << 20
"""Bytes of each part of a larger object, which every open upload keeps in memory."""

_REPLACEMENTS = 5
"""Attempts to replace a small object that others replace concurrently."""

_REFUSED = (403, 412)
"""Status codes of a retention policy and of a failed precondition."""


class ReplacedError(OutputError):
    """A large object that another writer replaced during its upload."""


class Upload(io.RawIOBase):
    """Content of an object, which `close` discards unless `complete` has returned.

    Up to `ONE_REQUEST_BYTES` are uploaded in one request, more in parts.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._kept: deque[bytes] = deque()
        self._parts: _Parts | None = None
        self._refusal: InvalidResponse | None = None
        self._size = self._crc = 0

    def writable(self) -> bool:
        return True

    def write(self, block: Buffer) -> int:
        """Take all bytes of a block, and send a part when it is full."""
        view = memoryview(block).cast("B")
        self._size += len(view)
        if self._parts is None:
            if self._size <= ONE_REQUEST_BYTES:
                self._kept.append(bytes(block))
                return len(view)
            found = object_if_exists(self._path)
            self._parts = _Parts(
                blob_of(self._path),
                UPLOAD_BYTES,
                checksum="crc32c",
                if_generation_match=found.generation if found else 0,
            )
            while self._kept:
                self._send(self._kept.popleft())
        self._send(view)
        return len(view)

    def complete(self, crc: str | None, may_commit: Callable[[], None]) -> None:
        """Complete the object. The store compares the CRC32C of the received bytes.

        Args:
            crc: CRC32C of the content, in base64; by default, of the bytes written here.
            may_commit: function called right before each completing request; may raise.

        Raises:
            DataCorruption, BadRequest: if the content has another CRC32C; there is no new object.
            ReplacedError: if another writer changed a large object since the upload began.
        """
        if self._parts is None:
            self._complete_in_one(b"".join(self._kept), may_commit, crc)
        else:
            self._complete_parts(self._parts, may_commit, crc)
        super().close()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._kept.clear()
            if self._parts is not None:
                self._parts.close()

    def _send(self, block: Buffer) -> None:
        assert self._parts is not None
        self._crc = extend(self._crc, block)
        if self._refusal is None:
            with self._notes_refusal():
                self._parts.write(block)

    @contextmanager
    def _notes_refusal(self) -> Iterator[None]:
        """Continue after a refusal, because the existing content may be equal."""
        try:
            yield
        except InvalidResponse as error:
            if error.response.status_code not in _REFUSED:
                raise
            self._refusal = error

    def _complete_in_one(
        self, content: bytes, may_commit: Callable[[], None], crc: str | None
    ) -> None:
        generation, crc = 0, crc or to_text(crc32c(content))
        for attempt in range(1, _REPLACEMENTS + 1):
            blob = blob_of(self._path)
            blob.crc32c = crc
            may_commit()
            try:
                blob.upload_from_string(
                    content,
                    "application/octet-stream",
                    if_generation_match=generation,
                    checksum=None,
                )
                return
            except (Forbidden, PreconditionFailed) as error:
                found = object_if_exists(self._path)
                if found is not None and (found.size, found.crc32c) == (len(content), crc):
                    return
                if isinstance(error, Forbidden) or attempt == _REPLACEMENTS:
                    raise
                generation = found.generation if found else 0

    def _complete_parts(
        self, parts: _Parts, may_commit: Callable[[], None], crc: str | None
    ) -> None:
        received = to_text(self._crc)
        if crc not in (None, received):
            raise DataCorruption(None, f"CRC32C {received} of the upload, expected {crc}")
        may_commit()
        if self._refusal is None:
            with self._notes_refusal():
                parts.complete()
        if self._refusal is not None:
            found = object_if_exists(self._path)
            if found is None or (found.size, found.crc32c) != (self._size, received):
                if self._refusal.response.status_code == 412:
                    raise ReplacedError(
                        f"{self._path}: other content was written since this upload began, by "
                        "another attempt or another run; run the same command again"
                    ) from self._refusal
                raise self._refusal
            with suppress(
                Exception
            ):  # The object is complete, so errors of the upload do not matter.
                parts.close()


class _Parts(BlobWriter):
    """An upload in parts that only `complete` completes.

    Google's writer completes an upload when it is closed, and Python closes unreferenced streams:
    half a file would be committed.
    """

    def complete(self) -> None:
        super().close()

    def close(self) -> None:
        if not self.closed:
            self.terminate()
