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
from transforms.claim import CLAIM_FILE
from transforms.commit_run import (
    Limits,
    NoSamplesError,
    OtherRunError,
    TooManyRejectedError,
    check_output_dir,
    commit_run,
)
from transforms.measure_output import OutputSize, OutputTooLargeError
from transforms.output_folder import OutputFolder, remove_output
from transforms.report_inputs import InputReport

RUN = describe("last", "float32", 8)
SIZE = OutputSize(layers=100 * len(RUN.layers_extracted), prompts=10)
REJECTED = [
    RejectedTask("a.json", "1", "bad_cell", "cell 10"),
    RejectedTask("b", "", "not_json", "?", "file"),
]
REJECTED_FILE = "errors/rejected.jsonl"


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
    report = InputReport(rejected=tuple(rejected or ()))
    commit_run((plan_ or plan(1, 2, 3), SIZE), claimed, run, Limits(**limits), report)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CLAIM_FILE
    }


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"layers_extracted": (10,)}, r"layers_extracted is \[10, 11, 12\] there, \[10\] now"),
        ({"model": {"hidden_size": 9}}, r"model\.hidden_size is 8 there, 9 now"),
        ({"weights": {"fingerprint": "05"}}, r"weights\.fingerprint is .* there, \"05\" now"),
        ({"versions": {"new": "3"}}, r"versions\.new is null there, \"3\" now"),
    ],
)
def test_another_setting_is_refused_and_named(tmp_path: Path, changed: Any, difference: str):
    commit(tmp_path)
    before, other = contents(tmp_path), dataclasses.replace(RUN, **changed)
    with pytest.raises(OtherRunError, match=rf"{tmp_path}.*{difference}.*--overwrite"):
        check_output_dir(str(tmp_path), other)
    with pytest.raises(OtherRunError, match=difference):
        commit(tmp_path, run=other, rejected=REJECTED)
    assert contents(tmp_path) == before


def test_the_same_run_may_go_on(tmp_path: Path):
    assert not check_output_dir(str(tmp_path), RUN)
    commit(tmp_path, rejected=REJECTED)
    before = contents(tmp_path)
    assert [*before] == [REJECTED_FILE, "run.json"]
    recorded = json.loads(before["run.json"])
    assert recorded["configuration"]["layers_extracted"] == [10, 11, 12]
    lines = before[REJECTED_FILE].decode().splitlines()
    assert [RejectedTask(**json.loads(line)) for line in lines] == REJECTED
    # Other files with the same samples, or another order of arrival, do not make another run.
    again = dataclasses.replace(RUN, inputs=(InputFile("b.json", 4, "05"),))
    assert check_output_dir(str(tmp_path), again)
    (tmp_path / "metadata.json").write_text("{}")
    commit(tmp_path, run=again, rejected=REJECTED[::-1])
    assert contents(tmp_path) == before, "the job writes the metadata last"
    commit(tmp_path)
    assert [*contents(tmp_path)] == ["run.json"]


def test_too_many_rejections_stop_the_run_and_are_kept(tmp_path: Path):
    message = r"2 rejected \(file not_json: 1, task bad_cell: 1\), .*max_rejected allows 1; .*jsonl"
    with pytest.raises(TooManyRejectedError, match=message):
        commit(tmp_path, rejected=REJECTED, max_rejected=1)
    assert len((tmp_path / REJECTED_FILE).read_text().splitlines()) == 2
    with pytest.raises(NoSamplesError, match=r"no sample .*task bad_cell: 1"):
        commit(tmp_path, plan(), rejected=REJECTED)
    # The same command succeeds once the tasks are fixed.
    (tmp_path / partial_file("run.json", "0123456789abcdef")).write_bytes(b"half")
    assert not check_output_dir(str(tmp_path), RUN)
    commit(tmp_path, rejected=REJECTED[:1], max_rejected=1)
    assert {REJECTED_FILE, "run.json"} <= contents(tmp_path).keys()


def test_too_large_an_output_stops_the_run_before_anything_changes(tmp_path: Path):
    commit(tmp_path, rejected=REJECTED)
    before = contents(tmp_path)
    size = 100 * len(RUN.layers_extracted) + 10
    with pytest.raises(OutputTooLargeError, match=f"{size} bytes .*--max_output_bytes"):
        commit(tmp_path, max_output_bytes=size - 1)
    assert contents(tmp_path) == before
    commit(tmp_path, rejected=REJECTED, max_output_bytes=size)


@pytest.mark.parametrize("content", [b"[]", b"\xff"])
def test_a_damaged_run_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(OtherRunError, match=r"run\.json cannot be read .*--overwrite"):
        check_output_dir(str(tmp_path), RUN)


def test_output_of_an_unknown_origin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    layer_file = Path("errors/out", shard_file(10, 0, 1))
    layer_file.parent.mkdir(parents=True)
    layer_file.write_bytes(b"")
    with pytest.raises(OtherRunError, match=r"already holds output without run\.json.*activations"):
        commit(Path("errors/out"))
    remove_output("./errors/out")
    check_output_dir("errors/out", RUN)
