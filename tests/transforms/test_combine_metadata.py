import dataclasses
import io
from pathlib import Path
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.format import partial_file, prompts_file, shard_file
from activation_dataset.input_counts import Written
from activation_dataset.manifest import LayerManifest, Manifest
from activation_dataset.metadata import InputFile, Metadata
from activation_dataset.prompts import Prompt, write_prompts
from activation_dataset.reporting.card import renewed_card
from activation_dataset.statistics import LayerStatistics
from activation_dataset.writer import LayerFileWriter
from corpus.task import RejectedTask
from tests.activation_dataset.synthetic import describe, frames_of, make_prompts, make_rows
from tests.transforms.merges import any_merge, combined
from tests.transforms.shards import KIND
from transforms.assign_shards import FINGERPRINT, ShardPlan, plan_shards
from transforms.claim import CLAIM_FILE
from transforms.combine_metadata import (
    CombineMetadata,
    GatherManifests,
    IncompleteError,
    MergeGathered,
    NonFiniteError,
    build_metadata,
)
from transforms.output_folder import ClaimLostError, OutputFolder
from transforms.report_inputs import InputReport

SITES = (10, 11, 12)
RUN = describe(KIND.pooling, KIND.storage_dtype, KIND.hidden, SITES)
INPUTS = [InputFile("b.json", 2, "02"), InputFile("a.json", 1, "01")]


def layer(
    site: int,
    shard: int,
    num_shards: int,
    nonfinite: int = 0,
    prompts: list[Prompt] | None = None,
    ops: str = "xla",
    stream: BinaryIO | None = None,
    last_bit: bool = False,
) -> LayerManifest:
    """Return the writer's manifest of a file with two samples of 3 and 4 tokens.

    The writer writes the file to `stream`. With a `last_bit`, a vector differs as if another
    implementation had computed it.
    """
    prompts = prompts or make_prompts([3, 4], seed=shard)
    rows = make_rows(prompts, KIND.pooling, KIND.hidden, seed=100 * site + shard)
    rows[:nonfinite, 0] = np.nan
    if last_bit:
        rows[0, 0] = np.nextafter(rows[0, 0], np.float32(np.inf))
    writer = LayerFileWriter(stream or io.BytesIO(), site, KIND)
    writer.append(frames_of(prompts, KIND), rows, LayerStatistics.of_vectors(rows))
    return writer.finish(shard, num_shards, ops)


def manifests(num_shards: int) -> dict[str, Manifest]:
    """Return the manifests of a complete dataset by path."""
    found: list[Manifest] = []
    for n in range(num_shards):
        found += [layer(site, n, num_shards) for site in SITES]
        found.append(write_prompts(io.BytesIO(), make_prompts([3, 4], seed=n), n, num_shards))
    return {each.file.path: each for each in found}


def plan_of(num_shards: int) -> ShardPlan:
    """Return the plan that the manifests fulfill."""
    fingerprints = np.zeros(2 * num_shards, FINGERPRINT)
    fingerprints["rank"] = np.arange(2 * num_shards)
    fingerprints["tokens"] = [3, 4] * num_shards
    return plan_shards(fingerprints, 2)


def report_of(samples: int) -> InputReport:
    rejected = RejectedTask("b.json", "x", "bad_cell", "", "task", 0)
    return InputReport(Written(2, samples), (rejected,), files=tuple(INPUTS))


def build(gathered: Any, allow_nonfinite: bool = False, plan: ShardPlan | None = None) -> Metadata:
    """Build metadata from manifests by path, or from gathered manifests."""
    if isinstance(gathered, dict):
        gathered = combined(GatherManifests(), gathered.values())
    plan = plan or plan_of(2)
    return build_metadata(gathered, RUN, allow_nonfinite, plan, report_of(plan.samples))


def test_a_whole_dataset_is_described():
    given = manifests(2)
    given[shard_file(12, 1, 2)] = layer(12, 1, 2, ops="amx")
    metadata = build(given)
    assert (metadata.total_samples, metadata.total_tokens) == (4, 14)
    assert [file.path for file in metadata.run.inputs] == ["a.json", "b.json"]
    assert (metadata.counts, metadata.ops) == (report_of(4).counts, ("amx", "xla"))
    assert Metadata.from_json(metadata.to_json()) == metadata


@settings(max_examples=30)
@given(st.data())
def test_neither_arrival_nor_merging_changes_a_byte(data):
    given = list(manifests(5).values())
    expected = build(combined(GatherManifests(), given), plan=plan_of(5))
    found = build(data.draw(any_merge(GatherManifests(), given)), plan=plan_of(5))
    assert found.to_json() == expected.to_json()
    groups = [
        combined(GatherManifests(), [each for each in given if each.shard // 2 == group])
        for group in range(3)
    ]
    found = build(data.draw(any_merge(MergeGathered(), groups)), plan=plan_of(5))
    assert found.to_json() == expected.to_json()


def test_a_missing_file_is_named():
    given = manifests(2)
    del given[prompts_file(1, 2)]
    with pytest.raises(IncompleteError, match=f"{prompts_file(1, 2)} was not written"):
        build(given)
    given = manifests(2)
    given[shard_file(12, 1, 2)] = layer(12, 1, 2, prompts=make_prompts([4, 3]))
    with pytest.raises(IncompleteError, match=r"layer_12/.* order, differ from prompts/"):
        build(given)
    plan = dataclasses.replace(plan_of(2), samples=5, tokens=16)
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
    """Return a claimed folder with the files of the manifests."""
    for n in range(2):
        for site in SITES:
            path = folder / shard_file(site, n, 2)
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as stream:
                layer(site, n, 2, stream=stream)
        path = folder / prompts_file(n, 2)
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            write_prompts(stream, make_prompts([3, 4], seed=n), n, 2)
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
                report=pipeline | "Report" >> beam.Create([report_of(4)]),
            )
        )


def test_the_metadata_is_written_last_and_partial_files_go_before_it(tmp_path: Path):
    folder = written(tmp_path)
    killed = tmp_path / partial_file(shard_file(10, 1, 2), "0123456789abcdef")
    killed.write_bytes(b"half")
    metadata, card = tmp_path / "metadata.json", tmp_path / "README.md"
    for _ in range(2):  # A runner repeats an attempt if its report of success was lost.
        run(manifests(2), folder)
        assert metadata.read_text() == build(manifests(2)).to_json()
        assert card.read_text("utf-8") == renewed_card(build(manifests(2)))
        assert card.stat().st_mtime_ns <= metadata.stat().st_mtime_ns
        assert not killed.exists()
        assert not (tmp_path / CLAIM_FILE).exists()


def test_a_file_that_was_removed_after_it_was_written_is_named(tmp_path: Path):
    folder, lost = written(tmp_path), prompts_file(0, 2)
    (tmp_path / lost).unlink()
    with pytest.raises(IncompleteError, match=f"1 files were removed or changed .* as {lost}"):
        run(manifests(2), folder)
    assert not (tmp_path / "metadata.json").exists()
    OutputFolder.claim(str(tmp_path))
    with pytest.raises(ClaimLostError):
        run(manifests(2), folder)


@pytest.mark.parametrize("reported", ["xla", "amx"])
@pytest.mark.parametrize("last", ["xla", "amx"])
def test_the_committed_file_of_two_attempts_counts(tmp_path: Path, reported: str, last: str):
    """Two attempts wrote the file with different bits; the runner may take the result of either."""
    folder, path = written(tmp_path), shard_file(11, 1, 2)
    attempts = {}
    for ops in sorted(("xla", "amx"), key=lambda each: each == last):
        with (tmp_path / path).open("wb") as stream:
            attempts[ops] = layer(11, 1, 2, ops=ops, stream=stream, last_bit=ops == "amx")
    given = manifests(2) | {path: attempts[reported]}
    if reported == last:
        run(given, folder)
        assert (tmp_path / "metadata.json").exists()
    else:
        with pytest.raises(IncompleteError, match=f"1 files .* such as {path}"):
            run(given, folder)
        assert not (tmp_path / "metadata.json").exists()
