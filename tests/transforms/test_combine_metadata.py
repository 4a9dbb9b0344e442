import io
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.format import Sample, prompts_file, shard_file
from activation_dataset.manifest import LayerManifest, Manifest, PromptsManifest
from activation_dataset.metadata import InputFile, Metadata
from activation_dataset.prompts import write_prompts
from activation_dataset.reporting.card import renewed_card
from activation_dataset.writer import LayerFileWriter
from tests.activation_dataset.synthetic import describe, make_prompts, make_rows, make_samples
from transforms.assign_shards import FINGERPRINT, ShardPlan, plan_shards
from transforms.combine_metadata import (
    CombineMetadata,
    GatherManifests,
    IncompleteError,
    NonFiniteError,
    build_metadata,
)
from transforms.output_folder import CLAIM_FILE, ClaimLostError, OutputFolder

LAYERS = (10, 11, 12)
HIDDEN = 4
RUN = describe("last", "float32", HIDDEN)
INPUTS = [InputFile("b.json", 2, "02"), InputFile("a.json", 1, "01")]


def manifest(layer: int, shard: int, num_shards: int, nonfinite: int = 0) -> LayerManifest:
    """Of a file with two samples of 3 and 4 tokens, as the writer would give it."""
    samples = make_samples([3, 4], "last", seed=shard)
    rows = make_rows(samples, "last", HIDDEN, seed=100 * layer + shard)
    rows[:nonfinite, 0] = np.nan
    writer = LayerFileWriter(io.BytesIO(), layer, "last", "float32", HIDDEN)
    writer.append(samples, rows, [1] * len(samples))
    return writer.finish(shard, num_shards)


def prompts(shard: int, num_shards: int) -> PromptsManifest:
    return write_prompts(io.BytesIO(), make_prompts([3, 4], seed=shard), shard, num_shards)


def manifests(num_shards: int) -> list[Manifest]:
    shards = range(num_shards)
    layers = [manifest(layer, shard, num_shards) for layer in LAYERS for shard in shards]
    return [*layers, *(prompts(shard, num_shards) for shard in shards)]


def plan_of(num_shards: int) -> ShardPlan:
    """The plan that the manifests carry out."""
    fingerprints = np.zeros(2 * num_shards, FINGERPRINT)
    fingerprints["rank"] = np.arange(2 * num_shards)
    fingerprints["tokens"] = [3, 4] * num_shards
    return plan_shards(fingerprints, 2)


def gather(given: list[Manifest]):
    combine = GatherManifests()
    gathered = combine.create_accumulator()
    for each in given:
        gathered = combine.add_input(gathered, each)
    return combine.extract_output(gathered)


def build(given: list[Manifest], num_shards: int, allow_nonfinite: bool = False) -> Metadata:
    plan = plan_of(num_shards)
    return build_metadata(gather(given), RUN, plan, INPUTS, {"bad_cell": 1}, allow_nonfinite)


def test_a_whole_dataset_is_described():
    metadata = build(manifests(3), 3)
    assert (metadata.total_samples, metadata.total_tokens) == (6, 21)
    assert [file.path for file in metadata.run.inputs] == ["a.json", "b.json"]
    assert metadata.rejected == {"bad_cell": 1}
    assert Metadata.from_json(metadata.to_json()) == metadata


@settings(max_examples=30)
@given(st.data())
def test_neither_arrival_nor_merging_changes_a_byte(data):
    """Any order, any bundles, any tree of merges."""
    combine = GatherManifests()
    accumulators = [combine.create_accumulator()]
    for each in data.draw(st.permutations(manifests(5))):
        accumulators[-1] = combine.add_input(accumulators[-1], each)
        if data.draw(st.booleans()):
            accumulators.append(combine.create_accumulator())
    while len(accumulators) > 1:
        taken = data.draw(st.integers(2, len(accumulators)))
        merged = combine.merge_accumulators(accumulators[:taken])
        accumulators = data.draw(st.permutations([merged, *accumulators[taken:]]))
    gathered = combine.extract_output(accumulators[0])
    metadata = build_metadata(gathered, RUN, plan_of(5), INPUTS, {"bad_cell": 1}, False)
    assert metadata.to_json() == build(manifests(5), 5).to_json()


def test_a_layer_file_that_is_missing_is_named():
    with pytest.raises(IncompleteError, match=r"layer_11/activations-00001-of-00002\.tfrecord was"):
        build([m for m in manifests(2) if m.file.path != shard_file(11, 1, 2)], 2)


def test_prompts_that_are_missing_are_named():
    with pytest.raises(IncompleteError, match=r"prompts/prompts-00001-of-00002\.tfrecord was not"):
        build([m for m in manifests(2) if m.file.path != prompts_file(1, 2)], 2)


def test_a_shard_that_is_missing_in_every_layer_is_named():
    with pytest.raises(IncompleteError, match=r"layer_10/activations-00001-of-00002\.tfrecord was"):
        build([m for m in manifests(2) if m.shard == 0], 2)


def test_no_layer_file_at_all_is_not_a_dataset():
    with pytest.raises(IncompleteError, match="was not written"):
        build([], 2)


def test_a_layer_with_other_samples_is_named():
    writer = LayerFileWriter(io.BytesIO(), 12, "last", "float32", HIDDEN)
    samples = [Sample("x", "x", np.zeros(1, np.int32), 3)]
    writer.append(samples, np.zeros((1, HIDDEN), np.float32), [1])
    given = [m for m in manifests(2) if m.file.path != shard_file(12, 1, 2)]
    with pytest.raises(IncompleteError, match=r"layer_12/.* has 1 samples and 3 tokens"):
        build([*given, writer.finish(1, 2)], 2)


def test_fewer_samples_than_were_planned_are_an_error():
    fingerprints = np.zeros(5, FINGERPRINT)
    plan = ShardPlan(2, 5, 16, "digest", plan_shards(fingerprints, 4).first_ranks)
    with pytest.raises(
        IncompleteError, match="5 samples of 16 tokens were planned, 4 of 14 were written"
    ):
        build_metadata(gather(manifests(2)), RUN, plan, INPUTS, {}, False)


def test_values_that_are_not_finite_are_an_error_unless_allowed():
    given = manifests(2)
    given[1] = manifest(10, 1, 2, nonfinite=2)
    given[5] = manifest(12, 1, 2, nonfinite=1)
    with pytest.raises(
        NonFiniteError, match=r"2 in layer 10, 1 in layer 12\..*--compute_dtype=float32.*--allow_no"
    ):
        build(given, 2)
    metadata = build(given, 2, allow_nonfinite=True)
    counts = {layer: each.nonfinite_count for layer, each in metadata.statistics.items()}
    assert counts == {10: 2, 11: 0, 12: 1}


def written(folder: Path, given: list[Manifest]) -> OutputFolder:
    """A claimed folder that has the files of the manifests, as far as a listing shows."""
    for each in given:
        (folder / each.file.path).parent.mkdir(exist_ok=True)
        (folder / each.file.path).write_bytes(bytes(each.file.bytes))
    return OutputFolder.claim(str(folder))


def combine(given: list[Manifest], folder: OutputFolder) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | "Manifests" >> beam.Create(given)
            | CombineMetadata(
                folder,
                RUN,
                allow_nonfinite=False,
                plan=pipeline | "Plan" >> beam.Create([plan_of(2)]),
                inputs=pipeline | "Inputs" >> beam.Create(INPUTS),
                rejected=pipeline | "Rejected" >> beam.Create([{"bad_cell": 1}]),
            )
        )


def test_the_pipeline_writes_the_metadata(tmp_path: Path):
    folder = written(tmp_path, manifests(2))
    combine(manifests(2), folder)
    assert (tmp_path / "metadata.json").read_text() == build(manifests(2), 2).to_json()
    assert not (tmp_path / CLAIM_FILE).exists()
    # As a runner does with an attempt that ended without its hearing of it.
    combine(manifests(2), folder)
    assert (tmp_path / "metadata.json").read_text() == build(manifests(2), 2).to_json()


def test_the_card_is_written_before_the_metadata(tmp_path: Path):
    combine(manifests(2), written(tmp_path, manifests(2)))
    card = tmp_path / "README.md"
    metadata = Metadata.from_json((tmp_path / "metadata.json").read_bytes())
    assert card.read_text("utf-8") == renewed_card(metadata)
    assert card.stat().st_mtime_ns <= (tmp_path / "metadata.json").stat().st_mtime_ns


def test_a_licence_that_was_given_and_a_card_of_somebody_else_stay(tmp_path: Path):
    metadata = build(manifests(2), 2)
    licensed = renewed_card(metadata, license="apache-2.0")
    assert licensed is not None
    for there in (licensed, "# Mine\n"):
        folder = written(tmp_path, manifests(2))
        (tmp_path / "metadata.json").unlink(missing_ok=True)
        (tmp_path / "README.md").write_text(there, "utf-8")
        combine(manifests(2), folder)
        assert (tmp_path / "README.md").read_text("utf-8") == there


def test_the_pipeline_writes_no_metadata_where_something_is_missing(tmp_path: Path):
    with pytest.raises(IncompleteError, match="was not written"):
        combine(manifests(2)[1:], written(tmp_path, manifests(2)))
    assert not (tmp_path / "metadata.json").exists()


@pytest.mark.parametrize("lost", [shard_file(11, 1, 2), prompts_file(0, 2)])
def test_a_file_that_was_removed_after_it_was_written_is_named(tmp_path: Path, lost: str):
    folder = written(tmp_path, manifests(2))
    (tmp_path / lost).unlink()
    with pytest.raises(IncompleteError, match=f"1 files were removed or changed .* as {lost}; run"):
        combine(manifests(2), folder)
    assert not (tmp_path / "metadata.json").exists()


def test_a_run_that_lost_its_folder_does_not_commit_the_dataset(tmp_path: Path):
    folder = written(tmp_path, manifests(2))
    other = OutputFolder.claim(str(tmp_path))
    with pytest.raises(ClaimLostError):
        combine(manifests(2), folder)
    assert not (tmp_path / "metadata.json").exists()
    other.check()
