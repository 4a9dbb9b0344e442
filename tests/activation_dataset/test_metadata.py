import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.fields import FieldError
from activation_dataset.format import prompts_file, shard_file
from activation_dataset.manifest import (
    FileEntry,
    LayerFile,
    LayerManifest,
    PromptsManifest,
    shards_of,
)
from activation_dataset.metadata import Metadata
from activation_dataset.norms import NormHistogram
from activation_dataset.statistics import LayerStatistics
from tests.activation_dataset.synthetic import LAYERS, describe

HIDDEN = 3


def statistics(count, nonfinite=0):
    mean = np.array([0.1, -2.5e-8, 1e300])
    norms = NormHistogram({65472: count})
    return LayerStatistics(count, nonfinite, mean, np.abs(mean), 1 / 3, 2.0, 7.25, norms)


def manifest(shard, layer, samples=2, tokens=30, num_shards=2):
    file = LayerFile(layer, shard_file(layer, shard, num_shards), 99, "AAAAAA==", statistics(2))
    return LayerManifest(shard, samples, tokens, samples, file)


def prompts(shard, samples=2, tokens=30):
    return PromptsManifest(shard, samples, tokens, FileEntry(prompts_file(shard, 2), 9, "BBBBBB=="))


def manifests():
    layers = [manifest(shard, layer) for shard in range(2) for layer in LAYERS]
    return [prompts(0), prompts(1), *layers]


METADATA = Metadata(
    run=describe("last", "bfloat16", HIDDEN),
    shards=shards_of(manifests(), LAYERS, 2),
    rejected={"ragged_grid": 2, "overlength": 1},
    statistics={layer: statistics(3, 1) for layer in LAYERS},
)


def changed(path, value):
    """The metadata as JSON with one field set (or removed, if the value is ...)."""
    whole = json.loads(METADATA.to_json())
    *parents, last = path
    inner = whole
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(whole)


def test_what_was_written_is_read():
    text = METADATA.to_json()
    assert Metadata.from_json(text) == METADATA
    assert Metadata.from_json(text.encode()).to_json() == text


def test_the_documented_fields_are_at_the_top():
    value = json.loads(METADATA.to_json())
    assert value["model_name"] == "random:tiny"
    assert value["layers_extracted"] == [10, 11, 12]
    assert (value["hidden_dim"], value["num_layers_extracted"]) == (3, 3)
    assert (value["total_samples"], value["total_tokens"], value["total_vectors"]) == (4, 60, 4)
    assert (value["storage_dtype"], value["byte_order"]) == ("bfloat16", "little")
    assert value["compute_dtype"] == "bfloat16"
    assert (value["pooling"], value["hook_point"]) == ("last", "residual_after_layer")
    assert value["weights"] == {"fingerprint": "sha256:01", "source": "random", "seed": 0}
    assert value["inputs"] == [{"path": "training.json", "bytes": 3, "sha256": "02"}]
    assert value["rejected"] == {"ragged_grid": 2, "overlength": 1}
    assert value["schema_version"] == 1
    assert value["statistics"]["11"]["mean"] == [0.1, -2.5e-8, 1e300]
    assert value["batches"][1] == {
        "shard": 1,
        "samples": 2,
        "tokens": 30,
        "prompts": {
            "path": "prompts/prompts-00001-of-00002.tfrecord",
            "bytes": 9,
            "crc32c": "BBBBBB==",
        },
        "files": {
            str(layer): {
                "path": f"layer_{layer}/activations-00001-of-00002.tfrecord",
                "bytes": 99,
                "crc32c": "AAAAAA==",
            }
            for layer in LAYERS
        },
    }


def test_the_text_does_not_depend_on_the_order_of_construction():
    other = replace(
        METADATA,
        rejected=dict(reversed(list(METADATA.rejected.items()))),
        statistics=dict(reversed(list(METADATA.statistics.items()))),
        shards=shards_of(reversed(manifests()), LAYERS, 2),
    )
    assert other.to_json() == METADATA.to_json()


def test_a_person_can_read_it():
    lines = METADATA.to_json().split("\n")
    assert '  "model_name": "random:tiny",' in lines
    assert sum(line.startswith('    {"files"') for line in lines) == 2
    assert lines[-2:] == ["}", ""]


@settings(max_examples=100)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_floats_keep_every_bit(values):
    mean = np.array(values)
    metadata = replace(
        METADATA, statistics={each: replace(statistics(4), mean=mean) for each in LAYERS}
    )
    read = Metadata.from_json(metadata.to_json())
    assert read.statistics[10].mean.tobytes() == mean.tobytes()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ["schema_version"],
            3,
            "schema_version is 3, but this reader knows 1 and 2: install a ne",
        ),
        (["schema_version"], 0, "schema_version is 0, but this reader knows 1 and 2: extract"),
        (["schema_version"], ..., "^schema_version is missing"),
        (["model_name"], 7, "^model_name is 7, expected a string"),
        (["pooling"], "max", '^pooling is \'max\', expected "last" or "mean" or "none"'),
        (["storage_dtype"], "float16", "^storage_dtype is 'float16', expected"),
        (["byte_order"], "big", "^byte_order is 'big', expected \"little\""),
        (["layers_extracted"], [11, 10, 12], r"^layers_extracted is \[11, 10, 12\], expected asc"),
        (["num_layers_extracted"], 4, "^num_layers_extracted is not 3"),
        (["hidden_dim"], 4, r"^statistics\.10\.mean has 3 elements, expected hidden_dim = 4"),
        (["total_samples"], 5, "^total_samples is 5, but the batches add up to 4"),
        (["batches", 1, "samples"], "2", r"^batches\[1\]\.samples is '2', expected an integer"),
        (["batches", 1, "shard"], 0, r"^batches\[1\]\.shard is 0, expected 1"),
        (["batches", 0, "files", "12"], ..., r"^batches\[0\]\.files has layers \[10, 11\]"),
        (["batches", 0, "files", "+9"], {}, r"^batches\[0\]\.files has the key '\+9'"),
        (
            ["batches", 0, "files", "10", "path"],
            "../../etc/passwd",
            r"^batches\[0\]\.files\.10\.path is '../../etc/passwd', expected 'layer_10/",
        ),
        (["batches", 0, "files", "10", "bytes"], -1, r"files\.10\.bytes is -1"),
        (
            ["batches", 0, "prompts", "path"],
            "x",
            r"prompts\.path is 'x', expected 'prompts/prompts-",
        ),
        (["batches", 0, "prompts"], ..., r"^batches\[0\]\.prompts is missing"),
        (["batches", 0, "files", "10", "md5"], "", r"files\.10\.md5 is not a known field"),
        (["statistics", "11"], ..., r"^statistics has layers \[10, 12\]"),
        (
            ["statistics", "11", "nonfinite_count"],
            7,
            r"^statistics\.11 counts 10 vectors, expected 4",
        ),
        (["statistics", "11", "count"], 9, r"^statistics\.11\.norm_histogram counts 3 norms"),
        (["rejected", "overlength"], 1.5, r"^rejected\.overlength is 1\.5, expected an integer"),
        (["weights", "fingerprint"], ..., r"^weights\.fingerprint is missing"),
        (["inputs", 0, "sha256"], None, r"^inputs\[0\]\.sha256 is None, expected a string"),
        (["comment"], "mine", "^comment is not a known field"),
        (["settings", "max_length"], 5, "^metadata_sha256 does not match: the file was changed"),
        (["settings", "max_length"], float("nan"), "not JSON: NaN is not a JSON number"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(path, value, message):
    with pytest.raises(FieldError, match=message):
        Metadata.from_json(changed(path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "null", '"text"', "[" * 100_000])
def test_what_is_no_metadata_is_refused(text):
    with pytest.raises(FieldError):
        Metadata.from_json(text)


def test_a_number_that_overflows_is_refused():
    text = METADATA.to_json().replace('"max_length": null', '"max_length": 1e999')
    with pytest.raises(FieldError, match="a value that cannot be written"):
        Metadata.from_json(text)


def test_a_change_of_one_bit_is_noticed():
    content = METADATA.to_json().encode()
    for bit in np.random.default_rng(0).integers(0, 8 * len(content), 2000):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(FieldError):
            assert Metadata.from_json(bytes(broken)).to_json().encode() != bytes(broken)


@pytest.mark.parametrize(
    ("given_manifests", "message"),
    [
        (manifests()[1:], r"prompts/prompts-00000-of-00002\.tfrecord was not written"),
        ([*manifests(), prompts(1)], r"prompts/prompts-00001.* was written twice"),
        ([*manifests()[1:], prompts(0, tokens=31)], r"prompts-00000.* 2 samples and 31 tokens"),
        (manifests()[:-1], r"layer_12/activations-00001-of-00002\.tfrecord was not written"),
        ([*manifests(), manifest(1, 11)], r"layer_11/activations-00001.* was written twice"),
        (
            [*manifests(), manifest(2, 11, num_shards=3)],
            r"layer_11/activations-00002-of-00003.* of shard 2; expected",
        ),
        ([*manifests()[:-1], manifest(1, 12, 3)], r"3 samples and 30 tokens, .* 2 and 30"),
    ],
    ids=[
        "no prompts",
        "prompts twice",
        "other prompts",
        "missing",
        "twice",
        "another run's",
        "unequal",
    ],
)
def test_manifests_that_do_not_fit_together_are_refused(given_manifests, message):
    with pytest.raises(ValueError, match=message):
        shards_of(given_manifests, LAYERS, 2)
