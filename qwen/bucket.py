"""The Cloud Storage client of a process."""

from __future__ import annotations

import os
from typing import Any

from qwen.load_once import load_once


def bucket_client() -> Any:
    """Return the `google.cloud.storage.Client` that this process shares.

    The first call creates the client. Several threads can use it at once.
    """
    return _client_of(os.environ.get("STORAGE_EMULATOR_HOST"))


@load_once
def _client_of(emulator: str | None) -> Any:
    """Create a client for this emulator address, which the client reads from the environment."""
    from google.cloud import storage

    return storage.Client()
