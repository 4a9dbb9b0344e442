"""What a record holds is what the model gives for that prompt, whatever the flags."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.format import Pooling, StorageDtype
from activation_dataset.reading.reader import ActivationDataset, ActivationRecord
from activation_dataset.sites import Site
from qwen.extractor import ActivationExtractor
from tests.end_to_end.job import problems_of, run


def records(out: Path, layer: int) -> dict[str, ActivationRecord]:
    assert problems_of(out) == []
    return {record.sample_id: record for record in ActivationDataset(out).records(layer)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 1 to some hundred tokens, so that several share a row and a long one takes more."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    words = ["the", "rule", "turns", "every", "grid,", "of", "10", "colours,", "é", "漢字", "too"]
    lengths = (1, 2, 3, 17, 60, 200, 5)
    with open(path, "w", encoding="utf-8") as stream:
        for number, length in enumerate(lengths):
            text = " ".join(words[(number + i) % len(words)] for i in range(length))
            stream.write(json.dumps({"id": f"text-{number}", "text": text}) + "\n")
    return path


@pytest.fixture(scope="module")
def texts(corpus: Path) -> dict[str, str]:
    lines = map(json.loads, corpus.read_text("utf-8").splitlines())
    return {f"texts.jsonl#{line['id']}": line["text"] for line in lines}


@cache
def extractor_of(
    checkpoint: Path, layers: tuple[int, ...], pooling: Pooling
) -> ActivationExtractor:
    return ActivationExtractor.load(
        str(checkpoint), layers, pooling=pooling, compute_dtype="float32", batch_size=1
    )


def alone(extractor: ActivationExtractor, text: str) -> dict[Site, np.ndarray]:
    """What the extractor gives for one text by itself: for each site [vectors, hidden]."""
    captured = extractor([text])
    return captured[0] if isinstance(captured, list) else captured


@pytest.mark.parametrize(
    ("pooling", "storage_dtype", "layers"),
    [
        ("last", "float32", [0, 1, 2]),
        ("mean", "float32", [1]),
        ("none", "bfloat16", [0, 2]),
    ],
)
def test_records_are_what_the_extractor_gives(
    checkpoint: Path,
    corpus: Path,
    texts: dict[str, str],
    tmp_path: Path,
    pooling: Pooling,
    storage_dtype: StorageDtype,
    layers: list[int],
):
    run(
        *(checkpoint, corpus, tmp_path / "out"),
        *("--layers_to_extract", *map(str, layers)),
        *("--pooling", pooling, "--storage_dtype", storage_dtype),
        *("--compute_dtype", "float32", "--batch_size", "1"),
    )
    extractor = extractor_of(checkpoint, tuple(layers), pooling)
    tolerance = 1e-4 if storage_dtype == "float32" else 2**-8
    for layer in layers:
        found = records(tmp_path / "out", layer)
        assert set(found) == set(texts)
        for sample_id, record in found.items():
            expected = alone(extractor, texts[sample_id])[layer]
            activation = record.activation.reshape(-1, 32)
            assert activation.shape == expected.shape
            assert np.linalg.norm(activation - expected) <= tolerance * np.linalg.norm(expected)
            assert record.stored.dtype == {"float32": "<f4", "bfloat16": "<u2"}[storage_dtype]
            assert record.num_tokens == len(expected) or pooling != "none"
            vectors = {"last": 1, "mean": record.num_tokens, "none": record.num_tokens}[pooling]
            assert len(record.token_ids) == vectors
    present = sorted(path.name for path in (tmp_path / "out").glob("layer_*"))
    assert present == [f"layer_{layer}" for layer in layers]
