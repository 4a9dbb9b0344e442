"""Google Cloud on the loopback address: objects in an emulator, and Dataflow's job service."""

import json
import socket
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

PROJECT = "research-project"
REGION = "us-west4"
BUCKET = "bucket"


@dataclass
class Cloud:
    """What a test can see of the cloud.

    Attributes:
      storage_address: where the emulator listens.
      dataflow_address: where the job service listens; it answers every job as done.
      credentials: file with the key of a service account that only this cloud knows.
      requests: the jobs of CreateJob requests, in order.
    """

    storage_address: str
    dataflow_address: str = ""
    credentials: Path = Path()
    requests: list[Any] = field(default_factory=list)

    def bucket(self) -> Bucket:
        options = {"api_endpoint": self.storage_address}
        return Client(PROJECT, AnonymousCredentials(), client_options=options).bucket(BUCKET)

    def read(self, name: str) -> bytes:
        content: bytes = self.bucket().blob(name).download_as_bytes()
        return content

    def write(self, name: str, content: bytes) -> None:
        self.bucket().blob(name).upload_from_string(content)

    def names(self, prefix: str = "") -> list[str]:
        return [blob.name for blob in self.bucket().list_blobs(prefix=prefix)]

    def flags(self) -> list[str]:
        """What a submission to this cloud has in any case."""
        return [
            "--runner=DataflowRunner",
            f"--project={PROJECT}",
            f"--region={REGION}",
            f"--staging_location=gs://{BUCKET}/staging",
            f"--temp_location=gs://{BUCKET}/temp",
        ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def serve(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def service_account(token_address: str) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "type": "service_account",
        "project_id": PROJECT,
        "client_email": f"launcher@{PROJECT}.iam.gserviceaccount.com",
        "token_uri": f"{token_address}/token",
        "private_key": key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    }


@pytest.fixture(scope="module")
def cloud_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    port = free_port()
    emulator = create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
    emulator.start()
    cloud = Cloud(f"http://localhost:{port}")

    class Dataflow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/token":
                self.answer({"access_token": "loopback", "expires_in": 3600})
                return
            assert self.path.startswith(f"/v1b3/projects/{PROJECT}/locations/{REGION}/jobs?")
            cloud.requests.append(json_format.Parse(body, dataflow_v1beta3.Job.pb()()))
            self.answer({"id": f"job-{len(cloud.requests)}", "currentState": "JOB_STATE_DONE"})

        def answer(self, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    dataflow = serve(Dataflow)
    cloud.dataflow_address = f"http://localhost:{dataflow.server_port}"
    cloud.credentials = tmp_path_factory.mktemp("credentials") / "key.json"
    cloud.credentials.write_text(json.dumps(service_account(cloud.dataflow_address)), "utf-8")
    yield cloud
    dataflow.shutdown()
    emulator.stop()


@pytest.fixture
def cloud(cloud_servers: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The cloud, with this process's clients turned to it."""
    cloud_servers.requests.clear()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud_servers.storage_address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
    # Beam would look for credentials on the network for half a minute, and keep what it finds.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)
    return cloud_servers
