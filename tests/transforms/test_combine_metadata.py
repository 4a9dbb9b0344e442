import io
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.format import partial_file, prompts_file, shard_file
from activation_dataset.manifest import LayerManifest, Manifest
from activation_dataset.metadata import InputFile, Metadata
from activation_dataset.prompts import Prompt, write_prompts
from activation_dataset.reporting.card import renewed_card
from activation_dataset.statistics import LayerStatistics
from activation_dataset.writer import LayerFileWriter
from tests.activation_dataset.synthetic import describe, frames_of, make_prompts, make_rows
from tests.transforms.merges import any_merge, combined
from tests.transforms.shards import KIND
from transforms.assign_shards import FINGERPRINT, ShardPlan, plan_shards
from transforms.combine_metadata import (
    CombineMetadata,
    GatherManifests,
    IncompleteError,
    NonFiniteError,
    build_metadata,
)
from transforms.output_folder import CLAIM_FILE, ClaimLostError, OutputFolder

SITES = (10, 11, 12)
RUN = describe(KIND.pooling, KIND.storage_dtype, KIND.hidden, SITES)
INPUTS = [InputFile("b.json", 2, "02"), InputFile("a.json", 1, "01")]


def prompts_of(shard: int) -> list[Prompt]:
    return make_prompts([3, 4], seed=shard)


def layer(
    site: int,
    shard: int,
    num_shards: int,
    nonfinite: int = 0,
    prompts: list[Prompt] | None = None,
    ops: str = "xla",
) -> LayerManifest:
    """The manifest of a file with two samples of 3 and 4 tokens, as the writer gives it."""
    prompts = prompts or prompts_of(shard)
    rows = make_rows(prompts, KIND.pooling, KIND.hidden, seed=100 * site + shard)
    rows[:nonfinite, 0] = np.nan
    writer = LayerFileWriter(io.BytesIO(), site, KIND)
    writer.append(frames_of(prompts, KIND), rows, LayerStatistics.of_vectors(rows))
    return writer.finish(shard, num_shards, ops)


def manifests(num_shards: int) -> dict[str, Manifest]:
    """The manifests of a complete dataset by path."""
    shards = range(num_shards)
    found: list[Manifest] = [layer(site, shard, num_shards) for site in SITES for shard in shards]
    found += [write_prompts(io.BytesIO(), prompts_of(n), n, num_shards) for n in shards]
    return {each.file.path: each for each in found}


def plan_of(num_shards: int) -> ShardPlan:
    """The plan that the manifests carry out."""
    fingerprints = np.zeros(2 * num_shards, FINGERPRINT)
    fingerprints["rank"] = np.arange(2 * num_shards)
    fingerprints["tokens"] = [3, 4] * num_shards
    return plan_shards(fingerprints, 2)


def build(gathered: Any, allow_nonfinite: bool = False, plan: ShardPlan | None = None) -> Metadata:
    """Build metadata of manifests by path, or of gathered ones."""
    if isinstance(gathered, dict):
        gathered = combined(GatherManifests(), gathered.values())
    rejected = {"bad_cell": 1}
    return build_metadata(gathered, RUN, plan or plan_of(2), INPUTS, rejected, allow_nonfinite)


def test_a_whole_dataset_is_described():
    given = manifests(2)
    given[shard_file(12, 1, 2)] = layer(12, 1, 2, ops="amx")
    metadata = build(given)
    assert (metadata.total_samples, metadata.total_tokens) == (4, 14)
    assert [file.path for file in metadata.run.inputs] == ["a.json", "b.json"]
    assert (metadata.rejected, metadata.ops) == ({"bad_cell": 1}, ("amx", "xla"))
    assert Metadata.from_json(metadata.to_json()) == metadata


@settings(max_examples=30)
@given(st.data())
def test_neither_arrival_nor_merging_changes_a_byte(data):
    given = list(manifests(5).values())
    expected = build(combined(GatherManifests(), given), plan=plan_of(5))
    found = build(data.draw(any_merge(GatherManifests(), given)), plan=plan_of(5))
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize("lost", [shard_file(11, 1, 2), prompts_file(1, 2)])
def test_a_file_that_was_not_written_is_named(lost: str):
    given = manifests(2)
    del given[lost]
    with pytest.raises(IncompleteError, match=f"{lost} was not written"):
        build(given)


def test_a_layer_with_other_samples_is_named():
    given = manifests(2)
    given[shard_file(12, 1, 2)] = layer(12, 1, 2, prompts=make_prompts([3]))
    with pytest.raises(IncompleteError, match=r"layer_12/.* has 1 samples and 3 tokens"):
        build(given)
    given[shard_file(12, 1, 2)] = layer(12, 1, 2, prompts=make_prompts([4, 3]))
    with pytest.raises(IncompleteError, match=r"layer_12/.* another order"):
        build(given)


def test_fewer_samples_than_were_planned_are_an_error():
    plan = ShardPlan(2, 5, 16, "digest", plan_shards(np.zeros(5, FINGERPRINT), 4).first_ranks)
    with pytest.raises(IncompleteError, match="5 samples of 16 tokens were planned, 4 of 14 were"):
        build(manifests(2), plan=plan)


def test_values_that_are_not_finite_are_an_error_unless_allowed():
    given = manifests(2)
    given[shard_file(10, 1, 2)] = layer(10, 1, 2, nonfinite=2)
    given[shard_file(12, 1, 2)] = layer(12, 1, 2, nonfinite=1)
    with pytest.raises(NonFiniteError, match=r"2 in layer 10, 1 in layer 12\..*--allow_nonfinite"):
        build(given)
    metadata = build(given, allow_nonfinite=True)
    counts = {site: each.nonfinite_count for site, each in metadata.statistics.items()}
    assert counts == {10: 2, 11: 0, 12: 1}


def written(folder: Path) -> OutputFolder:
    """A claimed folder that has the files of the manifests, as far as a listing shows."""
    for path, each in manifests(2).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(bytes(each.file.bytes))
    return OutputFolder.claim(str(folder))


def run(given: dict[str, Manifest], folder: OutputFolder) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | "Manifests" >> beam.Create(given.values())
            | CombineMetadata(
                folder,
                RUN,
                allow_nonfinite=False,
                plan=pipeline | "Plan" >> beam.Create([plan_of(2)]),
                inputs=pipeline | "Inputs" >> beam.Create(INPUTS),
                rejected=pipeline | "Rejected" >> beam.Create([{"bad_cell": 1}]),
            )
        )


def test_the_metadata_is_written_last_and_partial_files_go_before_it(tmp_path: Path):
    folder = written(tmp_path)
    killed = tmp_path / partial_file(shard_file(10, 1, 2), "0123456789abcdef")
    killed.write_bytes(b"half")
    run(manifests(2), folder)
    assert (tmp_path / "metadata.json").read_text() == build(manifests(2)).to_json()
    card = tmp_path / "README.md"
    assert card.read_text("utf-8") == renewed_card(build(manifests(2)))
    assert card.stat().st_mtime_ns <= (tmp_path / "metadata.json").stat().st_mtime_ns
    assert not killed.exists()
    assert not (tmp_path / CLAIM_FILE).exists()
    # A runner repeats an attempt whose success it did not hear of.
    run(manifests(2), folder)


def test_a_license_that_was_given_and_a_card_of_somebody_else_stay(tmp_path: Path):
    licensed = renewed_card(build(manifests(2)), license="apache-2.0")
    assert licensed is not None
    for card in (licensed, "# Mine\n"):
        folder = written(tmp_path)
        (tmp_path / "metadata.json").unlink(missing_ok=True)
        (tmp_path / "README.md").write_text(card, "utf-8")
        run(manifests(2), folder)
        assert (tmp_path / "README.md").read_text("utf-8") == card


@pytest.mark.parametrize("lost", [shard_file(11, 1, 2), prompts_file(0, 2)])
def test_a_file_that_was_removed_after_it_was_written_is_named(tmp_path: Path, lost: str):
    folder = written(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(IncompleteError, match=f"1 files were removed or changed .* as {lost}; run"):
        run(manifests(2), folder)
    assert not (tmp_path / "metadata.json").exists()


def test_a_run_that_lost_its_folder_does_not_commit_the_dataset(tmp_path: Path):
    folder = written(tmp_path)
    other = OutputFolder.claim(str(tmp_path))
    with pytest.raises(ClaimLostError):
        run(manifests(2), folder)
    assert not (tmp_path / "metadata.json").exists()
    other.check()
