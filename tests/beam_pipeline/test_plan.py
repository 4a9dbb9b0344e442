import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beam_pipeline.accelerators import ACCELERATORS
from beam_pipeline.command import main
from beam_pipeline.options import parse_flags
from beam_pipeline.plan import (
    Survey,
    Work,
    device_time,
    duration,
    make_plan,
    packing_of,
    predict,
    work_of,
)
from qwen.batching import Packing
from qwen.config import PRESETS
from qwen.extractor import ActivationExtractor
from tests.conftest import ROOT
from tests.end_to_end.job import metadata_of, run
from transforms.assign_shards import FINGERPRINT
from transforms.measure_output import OutputSize

QWEN = PRESETS["Qwen2.5-0.5B"]


def config_of(*flags: str):
    return parse_flags(["--model_path", "random:tiny", "--tasks_file", "tasks", *flags])[0]


@pytest.fixture
def tasks(short_tasks: Path, tmp_path: Path) -> Path:
    """The short tasks, with one that has a cell of 10 and a text that is too long."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for path in short_tasks.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    bad = {"train": [{"input": [[1]], "output": [[10]]}], "test": [{"input": [[1]]}]}
    (folder / "bad.json").write_text(json.dumps(bad))
    (folder / "text.jsonl").write_text(json.dumps({"id": "long", "text": "12 " * 400}))
    return folder


def test_what_is_planned_is_what_a_run_makes(checkpoint: Path, tasks: Path, tmp_path: Path):
    flags = [
        *("--layers_to_extract", "0", "2"),
        *("--pooling", "none", "--storage_dtype", "bfloat16"),
        *("--max_length", "600", "--samples_per_shard", "2", "--batch_size", "1"),
    ]
    common = ["--model_path", str(checkpoint), "--tasks_file", str(tasks), *flags]
    plan = make_plan(parse_flags(common)[0], workers=1, efficiency=0.3)

    out = tmp_path / "out"
    run(checkpoint, tasks, out, *flags)
    metadata = metadata_of(out)
    assert (plan.samples, plan.tokens) == (metadata.total_samples, metadata.total_tokens)
    assert plan.shards == len(metadata.shards) > 1
    assert plan.rejected == metadata.rejected == {"bad_cell": 1, "too_long": 1}
    assert plan.files == len(metadata.run.inputs)
    assert plan.input_bytes == sum(file.bytes for file in metadata.run.inputs)
    for layer in (0, 2):
        files = [batch.files[layer] for batch in metadata.shards]
        assert sum(file.bytes for file in files) == plan.size.layer
    assert sum(batch.prompts.bytes for batch in metadata.shards) == plan.size.prompts
    written = sum(path.stat().st_size for path in out.glob("*/*.tfrecord"))
    assert plan.size.total(plan.layers) == written


@pytest.mark.parametrize("batch_size", [1, 8])
def test_steps_are_packed_as_the_extractor_packs_them(checkpoint: Path, batch_size: int):
    extractor = ActivationExtractor.load(str(checkpoint), [0], batch_size=batch_size)
    assert packing_of(config_of(f"--batch_size={batch_size}"), None) == extractor._packing


@pytest.mark.parametrize(
    ("flags", "packing"),
    [
        (["--accelerator=tpu-v5e-8"], Packing(8, 4096, 2048)),
        (["--accelerator=tpu-v5e-8", "--mesh_shape=2,4"], Packing(2, 4096, 2048)),
        (["--accelerator=gpu-l4-1", "--batch_size=16"], Packing(1, 8192, 2048)),
        (["--accelerator=gpu-l4-1", "--compute_dtype=float32"], Packing(1, 4096, 4096)),
        (["--accelerator=cpu"], Packing(1, 4096, 4096)),
    ],
)
def test_each_kind_of_device_has_its_packing(flags: list[str], packing: Packing):
    config = config_of(*flags)
    assert packing_of(config, ACCELERATORS[config.accelerator]) == packing


def test_flops_are_those_of_the_trunk_up_to_the_highest_layer():
    """0.716 G and 43,008 for each token before it, in all 24 layers of the 0.5B model."""
    lengths = np.array([1000])
    packing = Packing(rows=1, slots=1024, row_length=1024)
    whole = work_of([lengths], QWEN, range(10, 24), packing)
    assert whole.depth == 24
    assert whole.flops == 1000 * 715_653_120 + 43_008 * (1000 * 1001 // 2) * 2
    assert whole.slots == 1024
    assert whole.padded_flops - whole.flops == 24 * 715_653_120
    half = work_of([lengths], QWEN, [3, 11], packing)
    assert half.depth == 12
    assert 2 * half.flops == whole.flops


def test_padding_is_that_of_each_shard():
    packing = Packing(rows=1, slots=1024, row_length=1024)
    together = work_of([np.array([512, 512])], QWEN, [0], packing)
    apart = work_of([np.array([512]), np.array([512])], QWEN, [0], packing)
    assert together.slots == 1024
    assert apart.slots == 1024
    assert work_of([np.array([513]), np.array([513])], QWEN, [0], packing).slots > 1026
    assert together.flops == apart.flops


def test_time_and_device_hours():
    work = Work(depth=24, slots=1, flops=0, padded_flops=int(197e12 * 8 * 3600))
    one = device_time(work, 64, ACCELERATORS["tpu-v5e-8"], None, workers=1, efficiency=0.5)
    assert one
    assert one.seconds == pytest.approx(2 * 3600)
    assert one.device_hours == pytest.approx(2 * 8)
    eight = device_time(work, 64, ACCELERATORS["tpu-v5e-8"], None, workers=8, efficiency=0.5)
    assert eight
    assert eight.seconds == pytest.approx(2 * 3600 / 8)
    assert eight.device_hours == pytest.approx(one.device_hours)


def test_who_waits_is_paid_for_too():
    work = Work(depth=24, slots=1, flops=0, padded_flops=int(197e12 * 3600))
    tpu = ACCELERATORS["tpu-v5e-8"]
    one = device_time(work, 3, tpu, None, workers=1, efficiency=0.5)
    two = device_time(work, 3, tpu, None, workers=2, efficiency=0.5)
    assert one
    assert two
    assert two.seconds == pytest.approx(one.seconds * 2 / 3)
    assert two.device_hours == pytest.approx(one.device_hours * 4 / 3)
    mesh = device_time(work, 3, tpu, (4, 1), workers=1, efficiency=0.5)
    assert mesh
    assert mesh.device_hours == pytest.approx(one.device_hours * 2)


def test_no_time_is_made_up_where_the_peak_is_unknown():
    work = Work(depth=1, slots=1, flops=1, padded_flops=1)
    assert device_time(work, 1, ACCELERATORS["cpu"], None, workers=1, efficiency=0.5) is None


def test_a_survey_without_samples_is_no_error():
    found = Survey(np.empty(0, FINGERPRINT), OutputSize(), {"not_json": 1})
    plan = predict(found, QWEN, [0], config_of("--accelerator=tpu-v5e-1"))
    assert (plan.samples, plan.shards, plan.work.slots, plan.time) == (0, 0, 0, None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.01234, "0.0123 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


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
        "  inputs   6 files, 0.0",
        "  rejected 1; 1 bad_cell",
        "  shards   3 of at most 2 samples",
        "  files    45: 14 layers and the prompts",
        " a layer, ",
        " in 24 layers, ",
        " on 8 x tpu-v5e-8, where 50% of the peak is reached",
        "  cost     under 0.01 USD: ",
        " device hours at 1.20",
        "Prices of 2026-11-23: list prices",
        "Only 3 of 8 workers have something to do",
    ):
        assert part in text
    assert not out.exists(), "a plan writes nothing"


def test_the_users_prices_and_efficiency_count(capsys, tasks: Path, tmp_path: Path):
    prices = tmp_path / "prices.toml"
    prices.write_text(
        'currency = "EUR"\ndate = "now"\nsource = "us"\n[device_hour]\ngpu-l4 = 1e9\n', "utf-8"
    )
    flags = ["--accelerator=gpu-l4-1", f"--prices={prices}"]
    costs = []
    for efficiency in (".5", "0.25"):
        assert main(plan_command(tasks, *flags, "--efficiency", efficiency)) == 0
        (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("  cost")]
        assert "EUR" in line
        costs.append(float(line.split()[1].replace(",", "")))
    assert costs[1] == pytest.approx(2 * costs[0], rel=1e-3)
    assert main(plan_command(tasks, f"--prices={prices}", "--accelerator=tpu-v5e-1")) == 2
    assert "there is no price of tpu-v5e" in capsys.readouterr().err


@pytest.mark.parametrize(("accelerator", "share"), [("tpu-v5e-8", "50%"), ("gpu-l4-1", "30%")])
def test_each_kind_of_device_is_expected_to_reach_its_own_share_of_its_peak(
    capsys, tasks: Path, accelerator: str, share: str
):
    assert main(plan_command(tasks, f"--accelerator={accelerator}")) == 0
    assert f"{accelerator}, where {share} of the peak is reached" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--accelerator=cpu"]])
def test_without_a_known_device_there_is_no_time(capsys, tasks: Path, flags: list[str]):
    assert main(plan_command(tasks, *flags)) == 0
    assert "  time     not predicted: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_output_bytes=10kB"], "--max_output_bytes allows 10,000. Choose fewer"),
        (["--max_rejected=0"], "1 tasks were rejected (1 bad_cell), --max_rejected allows 0"),
        (["--max_length=2"], "no sample is left to extract: "),
    ],
)
def test_plan_and_run_refuse_alike_before_the_model_is_loaded(
    capsys, tasks: Path, tmp_path: Path, flags: list[str], message: str
):
    out = tmp_path / "out"
    command = plan_command(tasks, "--output_dir", str(out), *flags)
    assert main(command) == 2
    planned = capsys.readouterr()
    assert "samples" in planned.out
    assert message in planned.err
    assert main(command[1:]) == 2
    assert message in capsys.readouterr().err
    assert not (out / "run.json").exists()
    assert not list(out.glob("layer_*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--efficiency=0"], "expected a fraction above 0 and at most 1, such as 0.3, got '0'"),
        (["--efficiency=30"], "expected a fraction above 0 and at most 1"),
        (["--prices=absent.toml"], "absent.toml: no table of prices can be read there"),
        (["--max_output_bytes=1.5TB"], "expected bytes, such as 1000000, 500GB or 2TB, got '1.5"),
        (["--layers_to_extract=24"], "--layers_to_extract: layer 24 does not exist"),
        (["--num_workers=0"], "--num_workers=0 is no number of workers; take 1 or more"),
        (["--num_workers=-3", "--accelerator=tpu-v5e-8"], "--num_workers=-3 is no number of"),
        (["--zzz"], "unknown flag --zzz."),
    ],
)
def test_a_mistake_is_one_line(capsys, example_tasks: Path, flags: list[str], message: str):
    assert main(plan_command(example_tasks, *flags)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("12kB", 12_000), ("2TB", 2 * 10**12)])
def test_bytes_may_have_a_unit(text: str, value: int):
    assert config_of("--max_output_bytes", text).max_output_bytes == value


def test_the_flags_of_a_plan_are_no_flags_of_the_job(capsys):
    assert main(["--model_path", "m", "--tasks_file", "t", "--efficiency=.3"]) == 2
    assert "unknown flag --efficiency=.3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m beam_pipeline plan --model_path" in text
    assert "--efficiency FRACTION" in text
    assert "--samples_per_shard" in text


def test_no_device_is_touched(example_tasks: Path):
    program = (
        "import sys; from beam_pipeline.command import main\n"
        f"assert main({plan_command(example_tasks)!r}) == 0\n"
        "assert 'jax' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
