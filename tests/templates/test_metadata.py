"""The template's parameters against the job's flags, and against what Dataflow reads."""

import argparse
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.cloud import dataflow_v1beta3
from google.protobuf import json_format

from beam_pipeline.accelerators import ACCELERATORS
from beam_pipeline.options import build_parser, parse_flags

FLEX = Path(__file__).parents[2] / "templates" / "flex"
METADATA = (FLEX / "metadata.json").read_text(encoding="utf-8")
PARAMETERS: dict[str, dict[str, Any]] = {
    parameter["name"]: parameter for parameter in json.loads(METADATA)["parameters"]
}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flex_metadata", FLEX / "metadata.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags() -> dict[str, argparse.Action]:
    return {action.dest: action for action in build_parser()._actions}


def test_the_file_is_what_the_flags_make_of_it():
    made = generator().template_metadata(build_parser())
    assert json.loads(METADATA) == made, (
        "python templates/flex/metadata.py > templates/flex/metadata.json"
    )


def test_dataflow_reads_every_field():
    parsed = json_format.Parse(METADATA, dataflow_v1beta3.TemplateMetadata.pb()())
    assert [parameter.name for parameter in parsed.parameters] == list(PARAMETERS)
    again = json.loads(json_format.MessageToJson(parsed))
    assert again["parameters"][0]["helpText"] == PARAMETERS["model_path"]["helpText"]


def test_every_flag_is_a_parameter_and_the_reverse():
    internal = {"help", "gcs_bucket", "no_progress", "upload_to_cloud"}
    assert set(flags()) - internal == set(PARAMETERS) - {"sdk_container_image"}


def test_what_the_service_sets_itself_is_no_parameter():
    assert not {"runner", "project", "region", "job_name", "temp_location"} & set(PARAMETERS)


def test_what_a_job_cannot_do_without_is_required():
    required = {name for name, fields in PARAMETERS.items() if not fields["isOptional"]}
    assert required == {
        "model_path",
        "tasks_file",
        "output_dir",
        "accelerator",
        "sdk_container_image",
    }
    assert {action.dest for action in flags().values() if action.required} <= required


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_default_passes_its_own_check(name: str):
    fields = PARAMETERS[name]
    if "defaultValue" in fields:
        for pattern in fields.get("regexes", []):
            assert re.search(pattern, fields["defaultValue"])
        options = [option["value"] for option in fields.get("enumOptions", [])]
        assert not options or fields["defaultValue"] in options


def test_a_form_that_is_left_as_it_is_changes_nothing():
    """The console sends what it shows, defaults too, and the launcher makes flags of all of it."""
    given = [
        "--model_path=random:tiny",
        "--tasks_file=gs://bucket/tasks",
        "--output_dir=gs://bucket/out",
        "--accelerator=cpu",
    ]
    shown = [
        f"--{name}={fields['defaultValue']}"
        for name, fields in PARAMETERS.items()
        if "defaultValue" in fields
    ]
    assert len(shown) > 10
    assert parse_flags([*given, *shown])[0] == parse_flags(given)[0]


def test_the_accelerators_are_those_of_the_job():
    values = [option["value"] for option in PARAMETERS["accelerator"]["enumOptions"]]
    assert values == list(ACCELERATORS)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("layers_to_extract", ["all", "10-23", "10 11 12", "10,11", "0-3,7"], ["", "ten", "10-"]),
        (
            "hook_points",
            ["mlp_out", "resid_mid mlp_out", "attn_out, resid_pre"],
            ["", "mlp", "all"],
        ),
        ("output_dir", ["gs://bucket/folder"], ["bucket/folder", "gs://bucket", "/tmp/out"]),
        ("tasks_file", ["gs://bucket/tasks/*.json"], ["tasks/*.json"]),
        ("mesh_shape", ["8,1"], ["8", "0,8", "8x1"]),
        ("samples_per_shard", ["512"], ["0", "-1", "many"]),
        ("max_output_bytes", ["1000000", "500GB"], ["0", "1.5TB", "500gb", "500 GB"]),
        ("max_rejected", ["0", "10"], ["-1"]),
        (
            "sdk_container_image",
            ["us-west4-docker.pkg.dev/project/repository/image:tag"],
            ["image", "us-west4-docker.pkg.dev/project/repository/image"],
        ),
    ],
)
def test_patterns_tell_right_from_wrong(name: str, right: list[str], wrong: list[str]):
    (pattern,) = PARAMETERS[name]["regexes"]
    assert [value for value in right if not re.search(pattern, value)] == []
    assert [value for value in wrong if re.search(pattern, value)] == []
