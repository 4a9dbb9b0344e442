"""What docs/dataflow.md says that can be compared with the code."""

import json
import re
from pathlib import Path

from beam_pipeline.accelerators import ACCELERATORS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dataflow.md").read_text(encoding="utf-8")


def test_the_table_of_accelerators_is_that_of_the_code():
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| `([a-z0-9-]+)` \| (\d+) \| (\d+) GB \| (?:(\d+) TFLOP/s)? ?\|$",
        PAGE,
        re.MULTILINE,
    )
    assert rows == [
        (
            name,
            settings.machine_types[0],
            str(settings.devices),
            str(round(settings.memory_bytes / 1e9)),
            str(round(settings.peak_flops / 1e12)) if settings.peak_flops else "",
        )
        for name, settings in ACCELERATORS.items()
    ]


def test_the_launch_names_parameters_that_the_template_has():
    metadata = json.loads((ROOT / "templates" / "flex" / "metadata.json").read_text("utf-8"))
    parameters = {parameter["name"]: parameter for parameter in metadata["parameters"]}
    (launch,) = re.findall(r"gcloud dataflow flex-template run.*?(?=\n\n)", PAGE, re.DOTALL)
    named = re.findall(r"(?:--parameters |,)([a-z_]+)=", launch)
    assert {name for name, fields in parameters.items() if not fields["isOptional"]} <= set(named)
    assert set(named) <= set(parameters)


def test_the_files_it_names_exist():
    for path in re.findall(r"(?<!/)\b((?:templates|scripts|examples)/[\w./-]+\w)", PAGE):
        assert (ROOT / path).exists(), path
