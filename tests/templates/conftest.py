"""Local fakes of Google Cloud: an emulator of Cloud Storage, and Dataflow's job service."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from apache_beam.internal.gcp import auth
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud import dataflow_v1beta3
from google.cloud.storage import Bucket, Client
from google.protobuf import json_format

from tests.conftest import ROOT, free_port

PROJECT = "research-project"
REGION = "us-west4"


@dataclass
class Cloud:
    """Local fake of the cloud.

    Attributes:
        storage_address: address of the storage emulator.
        dataflow_address: address of the job service, which reports every job as done.
        credentials: key file of a service account of this fake.
        requests: jobs of the CreateJob requests, in order.
    """

    storage_address: str
    dataflow_address: str
    credentials: Path
    requests: list[Any] = field(default_factory=list)

    def bucket(self) -> Bucket:
        """Return the bucket."""
        options = {"api_endpoint": self.storage_address}
        return Client(PROJECT, AnonymousCredentials(), client_options=options).bucket("bucket")

    def read(self, name: str) -> bytes:
        """Read an object."""
        content: bytes = self.bucket().blob(name).download_as_bytes()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        self.bucket().blob(name).upload_from_string(content)

    def write_task(self) -> None:
        """Write a shipped task to the folder `tasks/`."""
        self.write("tasks/turn.json", (ROOT / "examples" / "tasks" / "turn.json").read_bytes())

    def flags(self) -> list[str]:
        """Return the flags that every job for this cloud needs."""
        return [
            "--runner=DataflowRunner",
            f"--project={PROJECT}",
            f"--region={REGION}",
            "--staging_location=gs://bucket/staging",
            "--temp_location=gs://bucket/temp",
        ]


def service_account(token_uri: str) -> dict[str, str]:
    """Return the content of a key file with a new private key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    email = f"launcher@{PROJECT}.iam.gserviceaccount.com"
    fields = {"type": "service_account", "project_id": PROJECT, "client_email": email}
    return {**fields, "token_uri": token_uri, "private_key": key.decode()}


@pytest.fixture(scope="module")
def cloud_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Start the servers of the cloud for the tests of one module."""
    requests: list[Any] = []

    class Dataflow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer: dict[str, Any] = {"access_token": "loopback", "expires_in": 3600}
            if self.path != "/token":
                assert self.path.startswith(f"/v1b3/projects/{PROJECT}/locations/{REGION}/jobs?")
                requests.append(json_format.Parse(body, dataflow_v1beta3.Job.pb()()))
                answer = {"id": f"job-{len(requests)}", "currentState": "JOB_STATE_DONE"}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    port = free_port()
    emulator = create_server("localhost", port, in_memory=True, default_bucket="bucket")
    emulator.start()
    dataflow = ThreadingHTTPServer(("localhost", 0), Dataflow)
    threading.Thread(target=dataflow.serve_forever, daemon=True).start()
    address = f"http://localhost:{dataflow.server_port}"
    credentials = tmp_path_factory.mktemp("credentials") / "key.json"
    credentials.write_text(json.dumps(service_account(f"{address}/token")), "utf-8")
    yield Cloud(f"http://localhost:{port}", address, credentials, requests)
    dataflow.shutdown()
    emulator.stop()


@pytest.fixture
def cloud(cloud_servers: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Direct the clients of this process to the cloud, and return it."""
    cloud_servers.requests.clear()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud_servers.storage_address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
    # Beam would search the network for credentials for half a minute, and cache the result.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)
    return cloud_servers
