"""Cloud Storage client of the process."""

from __future__ import annotations

import os
from typing import Any

from qwen.load_once import load_once


def bucket_client() -> Any:
    """Return the shared `google.cloud.storage.Client` of this process.

    The first call creates it. It is safe to use from several threads.
    """
    return _client_of(os.environ.get("STORAGE_EMULATOR_HOST"))


@load_once
def _client_of(emulator: str | None) -> Any:
    """Create a client for the emulator address of the environment, if any."""
    from google.cloud import storage

    return storage.Client()
