"""The process's one client of Cloud Storage."""

from __future__ import annotations

import os
from typing import Any

from qwen.load_once import load_once


def bucket_client() -> Any:
    """Return the `google.cloud.storage.Client` that everything in this process shares.

    It is made when it is first asked for, and is safe to use from several threads.
    """
    return _client_of(os.environ.get("STORAGE_EMULATOR_HOST"))


@load_once
def _client_of(emulator: str | None) -> Any:
    """Make a client; it keeps the address of the emulator that is set when it is made."""
    from google.cloud import storage

    return storage.Client()
