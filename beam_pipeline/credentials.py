"""Google credentials, which a run on Dataflow needs."""

from __future__ import annotations

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_pipeline.accelerators import runs_on_dataflow
from beam_pipeline.config import ConfigError


def check_credentials(options: PipelineOptions) -> None:
    """Check that a run on Dataflow has credentials, for which Beam would search for minutes.

    Raises:
        ConfigError: if there are none.
    """
    if not runs_on_dataflow(options) or options.view_as(GoogleCloudOptions).no_auth:
        return
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    try:
        google.auth.default()
    except GoogleAuthError as error:
        raise ConfigError(
            f"--runner=DataflowRunner: no Google credentials ({str(error).partition('.')[0]}); run "
            "gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to the "
            "key file of a service account"
        ) from error
