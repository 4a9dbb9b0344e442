"""Tests that compare the template's parameters with the job, Dataflow and the documentation."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from google.cloud import dataflow_v1beta3
from google.protobuf import json_format

from beam_pipeline.accelerators import ACCELERATORS
from beam_pipeline.flags import build_parser
from beam_pipeline.options import parse_flags

ROOT = Path(__file__).parents[2]
FLEX = ROOT / "templates" / "flex"
PAGE = (ROOT / "docs" / "how_to" / "dataflow.md").read_text(encoding="utf-8")
METADATA = (FLEX / "metadata.json").read_text(encoding="utf-8")
PARAMETERS: dict[str, dict[str, Any]] = {
    parameter["name"]: parameter for parameter in json.loads(METADATA)["parameters"]
}
REQUIRED = {name for name, fields in PARAMETERS.items() if not fields["isOptional"]}


def test_the_file_agrees_with_the_flags_and_dataflow_reads_it():
    template_metadata = runpy.run_path(str(FLEX / "metadata.py"))["template_metadata"]
    assert json.loads(METADATA) == template_metadata(build_parser()), (
        "run: python templates/flex/metadata.py > templates/flex/metadata.json"
    )
    required = {action.dest for action in build_parser()._actions if action.required}
    assert required <= REQUIRED
    parsed = json_format.Parse(METADATA, dataflow_v1beta3.TemplateMetadata.pb()())
    assert [parameter.name for parameter in parsed.parameters] == list(PARAMETERS)


def test_fields_for_numbers_accept_only_numbers():
    numbers = {
        name: fields.get("regexes", [])
        for name, fields in PARAMETERS.items()
        if fields["paramType"] == "NUMBER"
    }
    assert "batch_size" in numbers
    for name, patterns in numbers.items():
        texts = [text for text in ("auto", "1GB") for each in patterns if re.search(each, text)]
        assert texts == [], name


def test_an_untouched_form_changes_nothing():
    """The console sends every value in the form, and the launcher converts all values to flags."""
    given = [
        "--model_path=random:tiny",
        "--tasks_file=gs://bucket/tasks",
        "--output_dir=gs://bucket/out",
        "--accelerator=cpu",
    ]
    defaults = {
        name: fields["defaultValue"]
        for name, fields in PARAMETERS.items()
        if "defaultValue" in fields
    }
    assert len(defaults) > 10
    for name, value in defaults.items():
        assert all(re.search(pattern, value) for pattern in PARAMETERS[name].get("regexes", []))
    shown = [f"--{name}={value}" for name, value in defaults.items()]
    assert parse_flags([*given, *shown])[0] == parse_flags(given)[0]


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("layers_to_extract", ["all", "10-23", "10 11 12", "10,11", "0-3,7"], ["", "ten", "10-"]),
        ("hook_points", ["mlp_out", "resid_mid mlp_out"], ["", "mlp", "all"]),
        ("output_dir", ["gs://bucket/folder"], ["bucket/folder", "gs://bucket", "/tmp/out"]),
        ("tasks_file", ["gs://bucket/tasks/*.json"], ["tasks/*.json"]),
        ("mesh_shape", ["8,1"], ["8", "0,8", "8x1"]),
        ("samples_per_shard", ["512", "auto"], ["0", "-1", "many"]),
        ("max_output_bytes", ["1000000", "500GB"], ["0", "1.5TB", "500 GB"]),
        ("upload_memory", ["1000000", "1GB"], ["0", "1.5GB"]),
        ("sdk_container_image", ["host/repository/image:tag"], ["image", "host/image"]),
    ],
)
def test_patterns_accept_right_values_and_refuse_wrong_ones(
    name: str, right: list[str], wrong: list[str]
):
    (pattern,) = PARAMETERS[name]["regexes"]
    assert [value for value in right if not re.search(pattern, value)] == []
    assert [value for value in wrong if re.search(pattern, value)] == []


def test_the_page_has_the_accelerators_of_the_job():
    row = r"^\| `([a-z0-9-]+)` \| `([a-z0-9-]+)` \| (\d+) \| (\d+) GB \|(?: (\d+) TFLOP/s)? \|"
    assert re.findall(row, PAGE, re.MULTILINE) == [
        (
            name,
            settings.machine_types[0],
            str(settings.devices),
            f"{settings.memory_bytes / 1e9:.0f}",
            f"{settings.peak_flops / 1e12:.0f}" if settings.peak_flops else "",
        )
        for name, settings in ACCELERATORS.items()
    ]


def test_the_page_launches_with_parameters_of_the_template():
    (launch,) = re.findall(r"gcloud dataflow flex-template run.*?(?=\n\n)", PAGE, re.DOTALL)
    named = set(re.findall(r"(?:--parameters |,)([a-z_]+)=", launch))
    assert REQUIRED <= named <= PARAMETERS.keys()
    for path in re.findall(r"(?<!/)\b((?:templates|scripts|examples)/[\w./-]+\w)", PAGE):
        assert (ROOT / path).exists(), path
