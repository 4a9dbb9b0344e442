"""Job service of an engine, which `--job_endpoint` names."""

from __future__ import annotations

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions

from beam_pipeline.config import ConfigError

START_SECONDS = 30.0
"""Time for a job service that was started just before the job."""


def wait_for_job_service(options: PipelineOptions, seconds: float = START_SECONDS) -> None:
    """Wait until the job service accepts connections, if the flags name one.

    Beam itself waits silently, for five minutes by default.

    Raises:
        ConfigError: if nothing answers at the endpoint.
    """
    endpoint = options.view_as(PortableOptions).job_endpoint
    if not endpoint:
        return
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError as error:
            raise ConfigError(
                f"--job_endpoint={endpoint}: no job service answered within {seconds:.0f} s; start "
                "it, or give its host and port"
            ) from error
