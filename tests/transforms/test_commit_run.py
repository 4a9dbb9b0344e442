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
from transforms.write_rejected import errors_file

RUN = describe("last", "float32", 8)
SIZE = OutputSize(layer=100, prompts=10)
DEAD = [RejectedTask("a.json", "1", "bad_cell", "cell 10"), RejectedTask("b", "", "not_json", "?")]


def plan(*tokens: int) -> ShardPlan:
    prompts = [text_prompt(f"a#{n}/0", f"{n}", np.arange(n, dtype=np.int32)) for n in tokens]
    return plan_shards(np.concatenate([np.empty(0, FINGERPRINT), *map(fingerprint, prompts)]), 2)


def commit(
    folder: Path,
    plan_: ShardPlan | None = None,
    run: RunDescription = RUN,
    rejected: list[RejectedTask] | None = None,
    max_rejected: int | None = None,
    max_output_bytes: int | None = None,
) -> None:
    claimed = OutputFolder.claim(str(folder))
    limits = Limits(max_rejected, max_output_bytes)
    commit_run(plan_ or plan(1, 2, 3), claimed, run, rejected or [], SIZE, limits)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CLAIM_FILE
    }


@pytest.mark.parametrize(
    ("there", "now", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a is 1 there, 2 now"]),
        ({"a": "x"}, {}, ['a is "x" there, null now']),
        ({}, {"a": [1, 2]}, ["a is null there, [1, 2] now"]),
        ({"s": {"b": 1, "a": 2}}, {"s": {"b": 3, "a": 4}}, ["s.a is 2 there, 4", "s.b is 1 there"]),
        ({"s": {"a": 1}}, {"s": 1}, ['s is {"a": 1} there, 1 now']),
        ({"s": {"t": {"a": True}}}, {"s": {"t": {"a": False}}}, ["s.t.a is true there, false now"]),
    ],
)
def test_differences_are_named_field_by_field(there: Any, now: Any, lines: list[str]):
    found = list(differences(there, now))
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start)


def test_the_inputs_are_no_part_of_the_configuration():
    """The plan has their samples, and a comment in a file does not make another run."""
    other = dataclasses.replace(RUN, inputs=(InputFile("b.json", 4, "05"),))
    assert configuration(other) == configuration(RUN)


@pytest.mark.parametrize(
    "changed",
    [
        {"layers_extracted": (10,)},
        {"pooling": "mean"},
        {"storage_dtype": "bfloat16"},
        {"compute_dtype": "float32"},
        {"prompt_template": {"name": "grid", "user": "other"}},
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
    other = dataclasses.replace(RUN, **changed)
    with pytest.raises(OtherRunError, match=next(iter(changed))) as error:
        check_output_dir(str(tmp_path), other)
    assert str(tmp_path) in str(error.value)
    assert "--overwrite" in str(error.value)
    with pytest.raises(OtherRunError, match=next(iter(changed))):
        commit(tmp_path, run=other, rejected=DEAD)
    assert contents(tmp_path) == before


def test_the_same_run_may_go_on(tmp_path: Path):
    check_output_dir(str(tmp_path), RUN)
    commit(tmp_path, rejected=DEAD)
    before = contents(tmp_path)
    assert sorted(before) == ["errors/rejected.jsonl", "run.json"]
    check_output_dir(str(tmp_path), RUN)
    commit(tmp_path, rejected=DEAD)
    assert contents(tmp_path) == before


def test_other_samples_are_refused_and_nothing_is_touched(tmp_path: Path):
    commit(tmp_path, plan(1, 2, 3), rejected=DEAD)
    before = contents(tmp_path)
    with pytest.raises(OtherRunError, match=r"samples is 3 there, 4 now; tokens is 6 there, 10 no"):
        commit(tmp_path, plan(1, 2, 3, 4), rejected=DEAD[:1])
    assert contents(tmp_path) == before


def test_the_plan_is_passed_on(tmp_path: Path):
    ours = plan(1, 2, 3)
    assert commit_run(ours, OutputFolder.claim(str(tmp_path)), RUN, [], SIZE, Limits()) is ours


def test_too_many_dead_letters_stop_the_run_and_are_kept(tmp_path: Path):
    message = r"2 tasks were rejected \(1 bad_cell, 1 not_json\), --max_rejected allows 1; .*jsonl"
    with pytest.raises(TooManyRejectedError, match=message):
        commit(tmp_path, rejected=DEAD, max_rejected=1)
    assert len(Path(errors_file(str(tmp_path))).read_text().splitlines()) == 2
    # With the tasks mended, the same command goes through.
    check_output_dir(str(tmp_path), RUN)
    commit(tmp_path, max_rejected=1)
    assert sorted(contents(tmp_path)) == ["run.json"]


def test_too_large_an_output_stops_the_run_before_anything_changes(tmp_path: Path):
    commit(tmp_path, rejected=DEAD)
    before = contents(tmp_path)
    size = 100 * len(RUN.layers_extracted) + 10
    message = rf"the output would have {size} bytes \(100 in each of .*--max_output_bytes allows"
    with pytest.raises(OutputTooLargeError, match=message):
        commit(tmp_path, max_output_bytes=size - 1)
    assert contents(tmp_path) == before
    commit(tmp_path, rejected=DEAD, max_output_bytes=size)
    assert contents(tmp_path) == before


def test_as_many_as_allowed_may_be_rejected(tmp_path: Path):
    commit(tmp_path, rejected=DEAD, max_rejected=2)
    assert sorted(contents(tmp_path)) == ["errors/rejected.jsonl", "run.json"]


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        ([], r"no sample is left to extract: 0 tasks were rejected \(none\)$"),
        (DEAD, r"no sample is left to extract: 2 tasks .*1 bad_cell, 1 not_json\); .*jsonl says"),
    ],
    ids=["empty", "all rejected"],
)
def test_a_run_without_samples_is_an_error(tmp_path: Path, rejected: list, message: str):
    with pytest.raises(NoSamplesError, match=message):
        commit(tmp_path, plan(), rejected=rejected)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"plan": {}}', b"\xff", b'{"configuration": 1}']
)
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
        check_output_dir(spelling, RUN)
    remove_output(spelling)
    check_output_dir(spelling, RUN)


def test_run_json_holds_the_configuration_and_the_plan(tmp_path: Path):
    commit(tmp_path)
    recorded = json.loads((tmp_path / "run.json").read_text())
    assert recorded["configuration"]["layers_extracted"] == [10, 11, 12]
    assert recorded["plan"]["num_shards"] == 2
    assert recorded["plan"]["samples"] == 3


def test_the_metadata_goes_before_anything_changes(tmp_path: Path):
    commit(tmp_path, rejected=DEAD)
    (tmp_path / "metadata.json").write_text("{}")
    commit(tmp_path, rejected=DEAD)
    assert sorted(contents(tmp_path)) == ["errors/rejected.jsonl", "run.json"]


def test_a_run_that_is_refused_leaves_the_dataset_alone(tmp_path: Path):
    commit(tmp_path)
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(OtherRunError):
        commit(tmp_path, plan(4), rejected=DEAD)
    assert sorted(contents(tmp_path)) == ["metadata.json", "run.json"]


def test_what_another_run_left_after_the_start_is_not_taken_over(tmp_path: Path):
    """It had begun a file before it lost its claim, and nobody knows with what settings."""
    (tmp_path / "layer_10").mkdir()
    (tmp_path / shard_file(10, 0, 2)).write_bytes(b"")
    with pytest.raises(OtherRunError, match=r"already holds output without run\.json"):
        commit(tmp_path)


def test_of_two_runs_in_a_fresh_folder_the_later_one_has_it(tmp_path: Path):
    first, second = (OutputFolder.claim(str(tmp_path)) for _ in range(2))
    with pytest.raises(ClaimLostError):
        commit_run(plan(1), first, RUN, DEAD, SIZE, Limits())
    assert contents(tmp_path) == {}
    commit_run(plan(1), second, RUN, [], SIZE, Limits())
    with pytest.raises(ClaimLostError):
        commit_run(plan(1), first, RUN, DEAD, SIZE, Limits())
    assert sorted(contents(tmp_path)) == ["run.json"]


def test_a_run_that_was_killed_while_it_began_is_in_nobodys_way(tmp_path: Path):
    for name in (CLAIM_FILE, "run.json", "errors/rejected.jsonl"):
        (tmp_path / "errors").mkdir(exist_ok=True)
        (tmp_path / partial_file(name, "0123456789abcdef")).write_bytes(b"half")
    assert check_output_dir(str(tmp_path), RUN) is None
