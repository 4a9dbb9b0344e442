import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from activation_dataset.__main__ import main
from activation_dataset.metadata import Metadata
from activation_dataset.reporting.card import CardError, renewed_card
from activation_dataset.verify import verify
from tests.activation_dataset.synthetic import write_dataset


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path, [[3, 4], [5]], pooling="none")
    return tmp_path


def read(dataset):
    return Metadata.from_json((dataset / "metadata.json").read_bytes())


def written(dataset: Path, certificate: bytes | None = None) -> str:
    text = renewed_card(read(dataset), certificate=certificate)
    assert text is not None
    return text


def certificate(dataset, **changes):
    value = {
        "metadata_sha256": json.loads((dataset / "metadata.json").read_bytes())["metadata_sha256"],
        "samples": ["a", "b"],
        "vectors": 9,
        "tolerance": 0.045,
        "passed": True,
        "layers": {
            "10": {"relative_error": 0.01, "cosine": 1.0},
            "11": {"relative_error": 0.02, "cosine": 1.0},
        },
    }
    return json.dumps(value | changes).encode()


def test_the_command_writes_what_the_hub_and_people_read(dataset, capsys):
    assert main(["card", str(dataset)]) == 0
    assert capsys.readouterr().out == f"{dataset}/README.md\n"
    text = (dataset / "README.md").read_text("utf-8")
    assert text == written(dataset)
    data = DatasetCard(text).data.to_dict()
    assert data["license"] == "unknown"
    assert data["pretty_name"] == "Activations of random:tiny, layers 10-12"
    for part in (
        "| samples | 3 | 12 tokens, 12 vectors in each layer |",
        "8 wide",
        "training.json",
    ):
        assert part in text
    assert len([line for line in text.splitlines() if line.startswith("| 1")]) == 3
    assert not verify(dataset).problems


def test_its_three_lines_load_the_dataset(dataset):
    code = written(dataset).partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) == 3
    found: dict[str, Any] = {}
    exec(code.replace("this/folder", str(dataset)), found)
    assert found["batch"].values.shape == (12, 8)


def test_a_license_that_was_given_stays(dataset):
    assert "does not know the license" in written(dataset)
    assert main(["card", str(dataset), "--license", "apache-2.0"]) == 0
    assert main(["card", str(dataset)]) == 0
    text = (dataset / "README.md").read_text("utf-8")
    assert DatasetCard(text).data.to_dict()["license"] == "apache-2.0"
    assert "License of the tasks: `apache-2.0`" in text


@pytest.mark.parametrize("license", ["Apache 2", "mit\ntags:"])
def test_no_license(dataset, license):
    with pytest.raises(CardError, match="identifier"):
        renewed_card(read(dataset), license=license)


def test_a_card_of_somebody_else_is_left_alone(dataset, capsys):
    (dataset / "README.md").write_text("# Mine\n")
    assert main(["card", str(dataset)]) == 2
    assert "somebody else" in capsys.readouterr().err
    assert (dataset / "README.md").read_text() == "# Mine\n"


def test_a_certificate_is_quoted(dataset):
    (dataset / "certificate.json").write_bytes(certificate(dataset))
    assert main(["card", str(dataset)]) == 0
    text = (dataset / "README.md").read_text("utf-8")
    assert "2 samples, 9 vectors in each layer" in text
    assert "2.00e-02 in layer 11, is within the tolerance of 0.045" in text
    assert "**exceeds** the" in written(dataset, certificate(dataset, passed=False))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"metadata_sha256": "0"}'])
def test_a_certificate_of_something_else_is_not_quoted(dataset, content):
    assert written(dataset, content) == written(dataset)


def test_names_cannot_break_the_card(dataset):
    metadata = read(dataset)
    run = replace(metadata.run, model_name='a"`|\n---\n<b>')
    card = renewed_card(replace(metadata, run=run))
    assert card is not None
    assert DatasetCard(card).data.to_dict()["pretty_name"].startswith('Activations of a"`| --- <b>')
    assert "\n---\n<b>" not in card
