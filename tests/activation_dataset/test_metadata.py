import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.canonical_json import sealed_text
from activation_dataset.fields import FieldError
from activation_dataset.format import data_file
from activation_dataset.input_counts import Count, InputCounts
from activation_dataset.manifest import (
    FileEntry,
    LayerManifest,
    PromptsManifest,
    sample_order,
    shards_of,
)
from activation_dataset.metadata import Metadata
from activation_dataset.norms import NormHistogram
from activation_dataset.statistics import LayerStatistics
from tests.activation_dataset.synthetic import describe

HIDDEN = 3
MLP_OUT = "blocks.10.hook_mlp_out"
SITES = (MLP_OUT, 10)
ORDER = sample_order(["a", "b"])


def statistics(count, nonfinite=0):
    mean = np.array([0.1, -2.5e-8, 1e300])
    norms = NormHistogram({65472: count})
    return LayerStatistics(count, nonfinite, mean, np.abs(mean), 1 / 3, 2.0, 7.25, norms)


def manifest(shard, site, samples=2, order=ORDER, num_shards=2):
    file = FileEntry(data_file(site, shard, num_shards), 99, "AAAAAA==")
    return LayerManifest(shard, samples, 30, samples, order, "xla", site, file, statistics(2))


def prompts(shard, tokens=30):
    file = FileEntry(data_file(None, shard, 2), 9, "BBBBBB==")
    return PromptsManifest(shard, 2, tokens, ORDER, file)


def manifests():
    layers = [manifest(shard, site) for shard in range(2) for site in SITES]
    return [prompts(0), prompts(1), *layers]


COUNTS = InputCounts(
    tasks=Count(6, 3, 0, {"too_long": 1, "ragged_grid": 2}),
    samples=Count(7, 4, 0, {"too_long": 3}),
    rejected_files={"not_json": 1},
    truncated_samples=2,
    truncated_tokens=40,
    unknown_cell_samples=1,
)
METADATA = Metadata(
    run=describe("last", "bfloat16", HIDDEN, (10,), ("mlp_out", "resid_post")),
    shards=shards_of(manifests(), SITES, 2),
    counts=COUNTS,
    statistics={site: statistics(3, 1) for site in SITES},
    ops=("amx", "xla"),
    skipped_files=(".cache/", "caf\\xe9.csv"),
    duplicate_tasks=1,
)


def sealed(value):
    rest = {name: each for name, each in value.items() if name != "metadata_sha256"}
    text = sealed_text(rest, "metadata_sha256")
    return text.replace('"schema_version": 1', f'"schema_version": {value["schema_version"]}')


def changed(path, value):
    """Return the metadata with one field set, or removed for `...`, and a valid digest."""
    whole = json.loads(METADATA.to_json())
    *parents, last = path
    inner = whole
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return sealed(whole)


def test_metadata_round_trip():
    text = METADATA.to_json()
    assert Metadata.from_json(text) == METADATA
    assert Metadata.from_json(text.encode()).to_json() == text


def test_the_text_is_that_of_every_version():
    text = METADATA.to_json()
    digest = "fc9ebbfffc14d3cb31efbbbac1dd151625972bca161ee82ea9e5ef2014a776bb"
    assert text.startswith(f'{{\n  "metadata_sha256": "{digest}",\n')
    assert json.loads(text)["statistics"]["10"]["mean"] == [0.1, -2.5e-8, 1e300]


def test_the_text_does_not_depend_on_the_order_of_construction():
    other = replace(
        METADATA,
        counts=replace(COUNTS, tasks=Count(6, 3, 0, {"ragged_grid": 2, "too_long": 1})),
        statistics=dict(reversed(list(METADATA.statistics.items()))),
        shards=shards_of(reversed(manifests()), SITES, 2),
    )
    assert other.to_json() == METADATA.to_json()


@settings(max_examples=100)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_floats_keep_every_bit(values):
    mean = np.array(values)
    each = replace(statistics(4), mean=mean)
    metadata = replace(METADATA, statistics=dict.fromkeys(SITES, each))
    assert Metadata.from_json(metadata.to_json()).statistics[10].mean.tobytes() == mean.tobytes()
    layer = replace(manifest(0, 10), statistics=each)
    read = LayerManifest.from_bytes(layer.to_bytes())
    assert read.statistics.mean.tobytes() == mean.tobytes()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema_version"], 2, "^schema_version is 2, .* reads 1: use a version"),
        (["pooling"], "max", "^pooling is 'max', expected"),
        (["layers_extracted"], [11, 10], r"^layers_extracted is \[11, 10\], expected ascending"),
        (["hook_points"], ["resid_post", "mlp_out"], "^hook_points is .* in order"),
        (["ops"], "xla", "^ops is 'xla', expected a list"),
        (["hidden_dim"], 4, rf"^statistics\.{MLP_OUT}\.mean has 3 elements, expected hidden_dim"),
        (["total_samples"], 5, "^total_samples is 5, but the other fields say 4"),
        (["batches", 1, "samples"], "2", r"^batches\[1\]\.samples is '2', expected an integer"),
        (["batches", 0, "files", "10"], ..., r"^batches\[0\]\.files has \['blocks"),
        (["batches", 0, "files", "blocks.9.hook_resid_post"], {}, "resid_post', expected '9'"),
        (
            ["batches", 0, "files", "10", "path"],
            "../../etc/passwd",
            r"^batches\[0\] has the path '../../etc/passwd', expected 'layer_10/",
        ),
        (["statistics", "10", "nonfinite_count"], 7, r"^statistics\.10 counts 10 .* expected 4"),
        (["statistics", "10", "count"], 9, r"^statistics\.10: norm_histogram counts 3 norms"),
        (["counts", "samples", "read"], 1.5, r"^counts\.samples\.read is 1\.5, expected an int"),
        (
            ["counts", "tasks", "read"],
            7,
            r"^counts\.tasks: read is 7, but 3 were written, 0 left",
        ),
        (
            ["counts", "samples"],
            {"read": 8, "written": 5, "unchosen": 0, "rejected": {"too_long": 3}},
            r"^counts\.samples\.written is 5, expected total_samples = 4",
        ),
        (
            ["counts", "tasks"],
            {"read": 5, "written": 5, "unchosen": 0, "rejected": {}},
            "4 samples of 5 tasks",
        ),
        (["counts", "truncated_samples"], 5, "^counts: 40 tokens were cut off 5 of 4 samples"),
        (["counts", "unknown_cell_samples"], 5, "^counts: 5 of 4 samples have unknown cells"),
        (["counts", "truncated_tokens"], 1, "^counts: 1 tokens were cut off 2 of 4 samples"),
        (["counts", "truncated_samples"], 0, "^counts: 40 tokens were cut off 0 of 4 samples"),
        (["weights", "fingerprint"], ..., r"^weights\.fingerprint is missing"),
        (["comment"], "mine", "^comment is not a known field"),
    ],
    ids=str,
)
def test_wrong_fields_are_named(path, value, message):
    with pytest.raises(FieldError, match=message):
        Metadata.from_json(changed(path, value))


@pytest.mark.parametrize("text", ["", "\xff", "null", "{}", "[" * 100_000])
def test_other_texts_are_refused(text):
    for read in (Metadata.from_json, LayerManifest.from_bytes, PromptsManifest.from_bytes):
        with pytest.raises(FieldError):
            read(text)


def test_the_digest_is_that_of_the_text_without_its_line():
    first, line, rest = METADATA.to_json().split("\n", 2)
    digest = hashlib.sha256(f"{first}\n{rest}".encode()).hexdigest()
    assert line == f'  "metadata_sha256": "{digest}",'


# Manifests.


def test_manifests_are_restored_from_their_bytes():
    layer = manifest(1, MLP_OUT)
    assert LayerManifest.from_bytes(layer.to_bytes()) == layer
    assert PromptsManifest.from_bytes(prompts(1).to_bytes()) == prompts(1)


def test_damaged_manifests_and_those_of_another_kind_are_refused():
    content = manifest(0, 10).to_bytes()
    for broken in (content.replace(b"7.25", b"7.26"), content[:-9], content.replace(b"xla", b"")):
        with pytest.raises(FieldError):
            LayerManifest.from_bytes(broken)
    with pytest.raises(FieldError, match="is not a known field"):
        PromptsManifest.from_bytes(content)
    with pytest.raises(FieldError, match="vectors is missing"):
        LayerManifest.from_bytes(prompts(0).to_bytes())


@pytest.mark.parametrize(
    ("given_manifests", "message"),
    [
        (manifests()[1:], r"prompts/prompts-00000-of-00002\.tfrecord was not written"),
        ([*manifests(), prompts(1)], r"prompts/prompts-00001.* was written twice"),
        ([*manifests(), manifest(2, 10, num_shards=3)], "00002-of-00003.* does not belong"),
        ([*manifests()[:-1], manifest(1, 10, samples=3)], "layer_10/.* 3 samples and 30 tokens"),
        ([*manifests()[:-1], manifest(1, 10, order="x")], "layer_10/.* order, differ"),
    ],
)
def test_manifests_that_do_not_fit_together_are_refused(given_manifests, message):
    with pytest.raises(ValueError, match=message):
        shards_of(given_manifests, SITES, 2)
