import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipeline.config import ConfigError
from beam_pipeline.job_service import wait_for_job_service


def test_an_endpoint_where_nothing_answers_is_named():
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        endpoint = f"localhost:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"--job_endpoint={endpoint}: "):
            wait_for_job_service(PipelineOptions([f"--job_endpoint={endpoint}"]), seconds=0.5)


def test_a_service_that_answers_is_no_error():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    wait_for_job_service(PipelineOptions([f"--job_endpoint=localhost:{port}"]))
    server.stop(None)


def test_without_an_endpoint_nothing_is_waited_for():
    wait_for_job_service(PipelineOptions([]))
