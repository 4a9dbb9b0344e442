import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_dataset.format import partial_file, shard_file
from activation_dataset.metadata import InputFile, RunDescription
from corpus.task import RejectedTask
from tests.activation_dataset.synthetic import describe, text_prompt
from transforms.assign_shards import FINGERPRINT, ShardPlan, fingerprint, plan_shards
from transforms.commit_run import (
    Limits,
    NoSamplesError,
    OtherRunError,
    TooManyRejectedError,
    check_output_dir,
    commit_run,
    configuration,
    differences,
)
from transforms.measure_output import OutputSize, OutputTooLargeError
from transforms.output_folder import CLAIM_FILE, ClaimLostError, OutputFolder, remove_output

RUN = describe("last", "float32", 8)
SIZE = OutputSize(layer=100, prompts=10)
DEAD = [RejectedTask("a.json", "1", "bad_cell", "cell 10"), RejectedTask("b", "", "not_json", "?")]
LETTERS = "errors/rejected.jsonl"


def plan(*tokens: int) -> ShardPlan:
    prompts = [text_prompt(f"a#{n}/0", f"{n}", np.arange(n, dtype=np.int32)) for n in tokens]
    return plan_shards(np.concatenate([np.empty(0, FINGERPRINT), *map(fingerprint, prompts)]), 2)


def commit(
    folder: Path,
    plan_: ShardPlan | None = None,
    run: RunDescription = RUN,
    rejected: list[RejectedTask] | None = None,
    **limits: int,
) -> None:
    claimed = OutputFolder.claim(str(folder))
    commit_run(plan_ or plan(1, 2, 3), claimed, run, rejected or [], SIZE, Limits(**limits))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CLAIM_FILE
    }


@pytest.mark.parametrize(
    ("there", "now", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": "x"}, {"b": [1, 2]}, ['a is "x" there, null now', "b is null there, [1, 2] now"]),
        ({"s": {"b": 1, "a": True}}, {"s": {"b": 1, "a": False}}, ["s.a is true there, false now"]),
        ({"s": {"a": 1}}, {"s": 1}, ['s is {"a": 1} there, 1 now']),
    ],
)
def test_differences_are_named_field_by_field(there: Any, now: Any, lines: list[str]):
    assert list(differences(there, now)) == lines


def test_the_inputs_are_no_part_of_the_configuration():
    """The plan has their samples, and a comment in a file does not make another run."""
    other = dataclasses.replace(RUN, inputs=(InputFile("b.json", 4, "05"),))
    assert configuration(other) == configuration(RUN)


@pytest.mark.parametrize(
    "changed",
    [
        {"layers_extracted": (10,)},
        {"pooling": "mean"},
        {"tokenizer": {"fingerprint": "sha256:05"}},
        {"weights": {"fingerprint": "sha256:05"}},
        {"settings": {"max_length": 5, "samples_per_shard": 4}},
        {"versions": {"numpy": "3"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_another_setting_is_refused_and_named(tmp_path: Path, changed: dict[str, Any]):
    commit(tmp_path)
    before = contents(tmp_path)
    other, name = dataclasses.replace(RUN, **changed), next(iter(changed))
    with pytest.raises(OtherRunError, match=rf"{tmp_path}.*{name}.*--overwrite"):
        check_output_dir(str(tmp_path), other)
    with pytest.raises(OtherRunError, match=name):
        commit(tmp_path, run=other, rejected=DEAD)
    assert contents(tmp_path) == before


def test_the_same_run_may_go_on(tmp_path: Path):
    assert check_output_dir(str(tmp_path), RUN) is None
    commit(tmp_path, rejected=DEAD)
    before = contents(tmp_path)
    assert [*before] == [LETTERS, "run.json"]
    recorded = json.loads(before["run.json"])
    assert recorded["configuration"]["layers_extracted"] == [10, 11, 12]
    assert check_output_dir(str(tmp_path), RUN) == recorded["plan"]
    commit(tmp_path, rejected=DEAD)
    assert contents(tmp_path) == before


def test_other_samples_are_refused_and_nothing_is_touched(tmp_path: Path):
    commit(tmp_path, rejected=DEAD)
    (tmp_path / "metadata.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(OtherRunError, match=r"samples is 3 there, 4 now; tokens is 6 there, 10 no"):
        commit(tmp_path, plan(1, 2, 3, 4), rejected=DEAD[:1])
    assert contents(tmp_path) == before


def test_the_metadata_is_deleted_before_anything_changes(tmp_path: Path):
    commit(tmp_path)
    (tmp_path / "metadata.json").write_text("{}")
    commit(tmp_path)
    assert [*contents(tmp_path)] == ["run.json"]


def test_too_many_dead_letters_stop_the_run_and_are_kept(tmp_path: Path):
    message = r"2 tasks were rejected \(1 bad_cell, 1 not_json\), --max_rejected allows 1; .*jsonl"
    with pytest.raises(TooManyRejectedError, match=message):
        commit(tmp_path, rejected=DEAD, max_rejected=1)
    assert len((tmp_path / LETTERS).read_text().splitlines()) == 2
    # The same command goes through once the tasks are mended.
    check_output_dir(str(tmp_path), RUN)
    commit(tmp_path, rejected=DEAD[:1], max_rejected=1)
    assert [*contents(tmp_path)] == [LETTERS, "run.json"]


def test_too_large_an_output_stops_the_run_before_anything_changes(tmp_path: Path):
    commit(tmp_path, rejected=DEAD)
    before = contents(tmp_path)
    size = 100 * len(RUN.layers_extracted) + 10
    with pytest.raises(OutputTooLargeError, match=f"{size} bytes .*--max_output_bytes"):
        commit(tmp_path, max_output_bytes=size - 1)
    assert contents(tmp_path) == before
    commit(tmp_path, rejected=DEAD, max_output_bytes=size)


@pytest.mark.parametrize(
    ("rejected", "message"),
    [([], r"no sample .*: 0 tasks were rejected \(none\)$"), (DEAD, r"no sample .*1 bad_cell.*")],
    ids=["empty", "all rejected"],
)
def test_a_run_without_samples_is_an_error(tmp_path: Path, rejected: list, message: str):
    with pytest.raises(NoSamplesError, match=message):
        commit(tmp_path, plan(), rejected=rejected)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"plan": {}}', b"\xff"])
def test_a_damaged_run_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(OtherRunError, match=r"run\.json cannot be read .*--overwrite"):
        check_output_dir(str(tmp_path), RUN)


@pytest.mark.parametrize("spelling", ["out", "./out", "deeper/../out", "errors/out"])
def test_output_is_found_however_the_folder_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deeper").mkdir()
    layer_file = tmp_path / spelling / shard_file(10, 0, 1)
    layer_file.parent.mkdir(parents=True)
    layer_file.write_bytes(b"")
    with pytest.raises(OtherRunError, match=r"already holds output without run\.json.*activations"):
        commit(Path(spelling))
    remove_output(spelling)
    check_output_dir(spelling, RUN)


def test_of_two_runs_in_a_fresh_folder_the_later_one_has_it(tmp_path: Path):
    first, second = (OutputFolder.claim(str(tmp_path)) for _ in range(2))
    for _ in range(2):
        with pytest.raises(ClaimLostError):
            commit_run(plan(1), first, RUN, DEAD, SIZE, Limits())
        commit_run(plan(1), second, RUN, [], SIZE, Limits())
    assert [*contents(tmp_path)] == ["run.json"]


def test_a_run_that_was_killed_while_it_began_is_in_nobodys_way(tmp_path: Path):
    (tmp_path / "errors").mkdir()
    for name in (CLAIM_FILE, "run.json", LETTERS):
        (tmp_path / partial_file(name, "0123456789abcdef")).write_bytes(b"half")
    assert check_output_dir(str(tmp_path), RUN) is None
