"""A plan that matches a run to the byte, with simple arithmetic for time and cost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.input_counts import InputCounts, Written
from beam_pipeline.command import main
from beam_pipeline.flags import build_plan_parser
from beam_pipeline.job import open_job
from beam_pipeline.options import parse_flags
from beam_pipeline.plan import Plan, make_plan, packing_of, report, slots_of
from qwen.batching import Packing
from qwen.flops import flops_of
from qwen.presets import PRESETS
from tests.conftest import ROOT
from tests.end_to_end.job import digests, flags_of, metadata_of, run
from tests.qwen.checkpoints import offline_hub_cache
from transforms.assign_shards import FINGERPRINT, plan_shards
from transforms.measure_output import OutputSize

QWEN = PRESETS["Qwen2.5-0.5B"]
HOUR_OF_V5E = int(197e12 * 3600)


def config_of(*flags: str):
    argv = ["--model_path", "random:tiny", "--tasks_file", "tasks", *flags]
    return parse_flags(argv, build_plan_parser())[0]


@pytest.fixture(scope="module")
def tasks(short_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the short tasks, one task with a cell of 10, and a text that is too long."""
    folder = tmp_path_factory.mktemp("planned") / "tasks"
    folder.mkdir()
    for path in short_tasks.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    bad = {"train": [{"input": [[1]], "output": [[10]]}], "test": [{"input": [[1]]}]}
    (folder / "bad.json").write_text(json.dumps(bad))
    (folder / "text.jsonl").write_text(json.dumps({"id": "long", "text": "12 " * 400}))
    return folder


def test_the_plan_equals_the_run(checkpoint: Path, tasks: Path, tmp_path: Path):
    flags = [
        *("--layers_to_extract", "0", "2"),
        *("--pooling", "none", "--storage_dtype", "bfloat16"),
        *("--max_length", "600", "--samples_per_shard", "2", "--batch_size", "1"),
    ]
    common = ["--model_path", str(checkpoint), "--tasks_file", str(tasks), *flags]
    plan = make_plan(open_job(parse_flags(common)[0]))

    out = tmp_path / "out"
    run(checkpoint, tasks, out, *flags)
    metadata = metadata_of(out)
    assert plan.shards.samples == metadata.total_samples
    assert plan.shards.tokens == metadata.total_tokens
    assert plan.shards.num_shards == len(metadata.shards) > 1
    assert plan.counts == metadata.counts
    assert plan.counts.tasks.rejected == {"bad_cell": 1, "too_long": 1}
    assert plan.counts.samples.rejected == {"too_long": 1}
    assert tuple(plan.inputs) == metadata.run.inputs
    written = sum(path.stat().st_size for path in out.glob("*/*.tfrecord"))
    assert plan.size.total == written
    assert sum(shard.prompts.bytes for shard in metadata.shards) == plan.size.prompts


@pytest.mark.parametrize(
    ("flags", "packing"),
    [
        ([], Packing(1, 4096, 4096)),
        (["--batch_size=1"], Packing(1, 512, 512)),
        (["--accelerator=tpu-v5e-8"], Packing(8, 4096, 2048)),
        (["--accelerator=tpu-v5e-8", "--mesh_shape=2,4"], Packing(2, 4096, 2048)),
        (["--accelerator=gpu-l4-1", "--batch_size=16"], Packing(1, 8192, 2048)),
        (["--accelerator=gpu-l4-1", "--compute_dtype=float32"], Packing(1, 4096, 4096)),
    ],
)
def test_each_kind_of_device_has_its_packing(flags: list[str], packing: Packing):
    assert packing_of(config_of(*flags)) == packing


def test_flops_are_those_of_the_trunk_up_to_the_highest_layer():
    """A token takes 0.716 G, and 43,008 per earlier token, in all 24 layers of the 0.5B model."""
    lengths = np.array([1000])
    whole = flops_of(QWEN, 24, 1000, lengths)
    assert whole == 1000 * 715_653_120 + 43_008 * (1000 * 1001 // 2) * 2
    assert flops_of(QWEN, 24, 1024, lengths) - whole == 24 * 715_653_120
    assert 2 * flops_of(QWEN, 12, 1000, lengths) == whole


def test_padding_is_that_of_each_shard():
    packing = Packing(rows=1, slots=1024, row_length=1024)
    assert slots_of(np.array([512, 512]), packing) == 1024
    assert slots_of(np.array([513]), packing) > 513


def plan_of(shards: int, padded_flops: int, layer_bytes: int = 0) -> Plan:
    """Return a plan whose shards have one sample and one slot each."""
    fingerprints, ones = np.zeros(shards, FINGERPRINT), np.ones(shards, np.int64)
    return Plan(
        *(plan_shards(fingerprints, 1), 1, ones, ones, 1, OutputSize(layer_bytes)),
        *(InputCounts.of(Written(), []), [], [], padded_flops, padded_flops),
    )


@pytest.mark.parametrize(
    ("shards", "workers", "flags", "time"),
    [
        (64, 1, [], "2:00:00"),
        (64, 8, [], "0:15:00"),
        (3, 2, [], "1:20:00"),
        (64, 1, ["--mesh_shape=4,1"], "4:00:00"),
    ],
)
def test_workers_take_whole_shards(shards: int, workers: int, flags: list[str], time: str):
    config = config_of("--accelerator=tpu-v5e-8", *flags)
    assert f"  time     {time} on " in report(plan_of(shards, 8 * HOUR_OF_V5E), config, workers)


def test_time_and_cost_follow_efficiency_and_price():
    plan = plan_of(64, 8 * HOUR_OF_V5E)
    text = report(plan, config_of("--accelerator=tpu-v5e-8"), 8)
    assert "0:15:00 on 8 x tpu-v5e-8, at 50% of the peak" in text
    assert "19.20: 16 device hours at 1.20" in text
    assert "list price" in text
    flags = ["--accelerator=tpu-v5e-8", "--efficiency=.25", "--device_price=1"]
    text = report(plan, config_of(*flags), 8)
    assert "0:30:00" in text
    assert "32.00: 32 device hours at 1.00" in text
    assert "list price" not in text


def test_writing_may_take_longer_than_the_model():
    """The model takes one worker an hour; 36 TB take 14.4 minutes at 14 files x 50 MB/s x 60."""
    plan = plan_of(600, 4 * HOUR_OF_V5E, 36 * 10**12)
    flags = ["--accelerator=tpu-v5e-8", "--device_price=1"]
    text = report(plan, config_of(*flags), 60)
    assert "0:14:18 on 60 x tpu-v5e-8" in text
    assert "  limit    writing; the model takes 7% of its time, 14 files" in text
    assert "slower on any number of workers" in text
    text = report(plan, config_of(*flags, "--storage_bandwidth=10GB"), 60)
    assert "1:00:00 on 60 x tpu-v5e-8" in text
    assert "more than 14 only wait" in text


def test_the_tail_of_shards_that_do_not_fill_the_last_round():
    text = report(plan_of(21, 1), config_of(), 4)
    assert "3 of 4 workers wait at the end, up to 16.7% of the run; 12.5% of all" in text
    assert "pass --samples_per_shard auto" in text.splitlines()[-1]
    assert "no worker waits" in report(plan_of(20, 1), config_of(), 4)


@pytest.mark.parametrize(
    ("flags", "samples"), [([], 1), (["--accelerator=cpu"], 1), (["--accelerator=tpu-v5e-1"], 0)]
)
def test_no_time_is_predicted_without_a_basis(flags: list[str], samples: int):
    assert "  time     not predicted: " in report(plan_of(samples, 1), config_of(*flags), 1)


def plan_command(tasks: Path, *flags: str) -> list[str]:
    return ["plan", "--model_path", "random:tiny", "--tasks_file", str(tasks), *flags]


def test_the_report(capsys: pytest.CaptureFixture[str], tasks: Path, tmp_path: Path):
    out = tmp_path / "out"
    flags = ["--output_dir", str(out), "--accelerator=tpu-v5e-8", "--num_workers=8"]
    assert main(plan_command(tasks, *flags, "--samples_per_shard=2")) == 0
    text, err = capsys.readouterr()
    assert err == ""
    for part in (
        "random:tiny: 6 samples, 2,",
        "  read     6 items; 5 written, 1 rejected (1 bad_cell)",
        "  read     6 samples; 6 written, 0 rejected",
        "  shards   3 of at most 2 samples",
        "  files    45: ",
        " on 8 x tpu-v5e-8, at 50% of the peak",
        "  cost     under 0.01: ",
        "Only 3 of 8 workers",
    ):
        assert part in text
    assert not out.exists(), "a plan writes nothing"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max_output_bytes=10kB"], "--max_output_bytes allows 10,000"),
        (["--max_output_bytes=10kB", "--layers_to_extract=all"], "24 layer folders"),
        (["--layers_to_extract=24"], "--layers_to_extract: layer 24 does not exist"),
        (["--max_rejected=0"], "1 rejected (task bad_cell: 1), but --max_rejected allows 0"),
        (["--max_length=2"], "no sample is left to extract: "),
        (["--max_length=2"], "; the first: "),
    ],
)
def test_plan_and_run_refuse_alike_before_the_model_is_loaded(
    capsys, tasks: Path, tmp_path: Path, flags: list[str], named: str
):
    out = tmp_path / "out"
    command = plan_command(tasks, "--output_dir", str(out), *flags)
    for argv in (command, command[1:]):
        assert main(argv) == 2
        assert named in capsys.readouterr().err
    assert not (out / "run.json").exists()
    assert not (out / "claim.json").exists()
    assert not list(out.glob("layer_*"))


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    run(checkpoint, tasks, out, "--layers_to_extract=0")
    return out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], ""),
        (["--pooling=mean"], 'pooling is "last" there, "mean" now'),
        (["--max_length=1000"], "settings.max_length is 32768 there, 1000 now"),
        (["--max_rejected=5", "--no_progress"], ""),
        (["--pooling=mean", "--overwrite"], ""),
    ],
)
def test_a_plan_is_compared_with_the_run_in_the_output_folder(
    capsys, checkpoint: Path, finished: Path, tasks: Path, flags: list[str], named: str
):
    before = digests(finished)
    command = ["plan", *flags_of(checkpoint, tasks, finished, ("--layers_to_extract=0", *flags))]
    assert main(command) == (2 if named else 0)
    text, error = capsys.readouterr()
    assert named in error
    assert "  shards  " in text, "the plan is printed too"
    assert digests(finished) == before


def test_a_plan_with_other_samples_than_the_run_is_refused(
    capsys, checkpoint: Path, finished: Path, tasks: Path
):
    flags = ("--layers_to_extract=0",)
    assert main(["plan", *flags_of(checkpoint, tasks / "mirror.json", finished, flags)]) == 2
    assert "samples is 6 there, 1 now" in capsys.readouterr().err


def test_a_plan_for_a_folder_of_unknown_origin_is_refused(capsys, tasks: Path, tmp_path: Path):
    (tmp_path / "metadata.json").write_text("{}")
    assert main(plan_command(tasks, "--output_dir", str(tmp_path))) == 2
    assert "metadata.json" in capsys.readouterr().err


def test_a_plan_downloads_no_weights_of_a_hub_model(
    capsys, checkpoint: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = offline_hub_cache(checkpoint, tmp_path, monkeypatch, commit := "c" * 40)
    (cache / "snapshots" / commit / "model.safetensors").unlink()
    flags = ["--layers_to_extract=0", f"--output_dir={tmp_path}/out"]
    assert main(plan_command(tasks, f"--model_path=org/{tmp_path.name}", *flags)) == 0
    assert "6 samples" in capsys.readouterr().out


def test_a_plan_checks_the_weights(capsys, checkpoint: Path, tasks: Path, tmp_path: Path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    os.truncate(model / "model.safetensors", 5000)
    assert main(plan_command(tasks, "--model_path", str(model), "--layers_to_extract=0")) == 2
    assert f"{model}/model.safetensors: " in capsys.readouterr().err


def test_a_plan_of_shards_for_workers(capsys: pytest.CaptureFixture[str], tasks: Path):
    flags = ["--samples_per_shard=auto", "--direct_num_workers=7"]
    assert main(plan_command(tasks, *flags, "--augment=4", "--num_workers=2")) == 0
    text = capsys.readouterr().out
    assert "  shards   16 of 1 to 2 samples, as auto chooses for 2 workers" in text
    assert main(plan_command(tasks, *flags)) == 0
    assert "  shards   6 of 1 sample, as auto chooses for 1 worker\n" in capsys.readouterr().out


def test_no_device_is_touched(example_tasks: Path):
    program = (
        "import sys; from beam_pipeline.command import main\n"
        f"assert main({plan_command(example_tasks)!r}) == 0\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
