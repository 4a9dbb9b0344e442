"""Emulator of Cloud Storage for tests; import `address` and `bucket` to use them as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Bucket, Client

from tests.conftest import free_port

BUCKET = "research"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of an emulator with one bucket, for `STORAGE_EMULATOR_HOST`."""
    port = free_port()
    server = create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    yield f"http://localhost:{port}"
    server.stop()


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return the empty bucket; the job's own client also uses the emulator."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project")
    bucket = Client("project", AnonymousCredentials()).bucket(BUCKET)
    for blob in bucket.list_blobs():
        blob.delete()
    return bucket


def names(bucket: Bucket) -> list[str]:
    """Return the names of all objects."""
    return [blob.name for blob in bucket.list_blobs()]


def upload(folder: Path, bucket: Bucket, prefix: str) -> None:
    """Upload every file of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            bucket.blob(name).upload_from_filename(path)


def download(bucket: Bucket, prefix: str, folder: Path) -> Path:
    """Download every object below a prefix."""
    for blob in bucket.list_blobs(prefix=f"{prefix}/"):
        path = folder / blob.name.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        blob.download_to_filename(path)
    return folder
