"""Parsing of flags into a `Config` and Beam's options, with errors that name the mistake."""

from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from beam_pipeline.config import Config, ConfigError
from beam_pipeline.flag_values import parse_layers
from beam_pipeline.flags import DEFAULT_COMPILE_CACHE
from beam_pipeline.options import parse_flags
from qwen.settings import ExtractorSettings

REQUIRED = ["--model_path", "random:tiny", "--tasks_file", "gs://bucket/tasks"]
ON_DATAFLOW = ["--runner=DataflowRunner", "--output_dir=gs://bucket/out"]


def config_of(*flags: str) -> Config:
    return parse_flags([*REQUIRED, *flags])[0]


def test_the_defaults():
    config = config_of()
    layers = tuple(range(10, 24))
    assert config.extractor == ExtractorSettings(
        "random:tiny", layers, compile_cache=DEFAULT_COMPILE_CACHE
    )
    assert config.output_dir == "activations"
    assert config.samples_per_shard == 512
    assert config.augmentation is None


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--samples_per_shard", "auto"], "samples_per_shard", "auto"),
        (["--max_output_bytes", "2TB"], "max_output_bytes", 2 * 10**12),
        (["--allow_nonfinite", "--overwrite=TRUE"], "overwrite", True),
        (["--overwrite"], "overwrite", True),
        (["--tasks_file", "more", "most"], "tasks_file", ("gs://bucket/tasks", "more", "most")),
        (["--mesh_shape=4, 2"], "mesh_shape", (4, 2)),
        (["--compile_cache", "gs://b/c"], "compile_cache", "gs://b/c"),
        (["--layers_to_extract", "3", "--layers_to_extract", "1"], "layers", (1, 3)),
        (["--ignore_config", "auto_map, a,a"], "ignore_config", ("a", "auto_map")),
        (["--hook_points", "resid_pre,mlp_out, mlp_out"], "hook_points", ("resid_pre", "mlp_out")),
    ],
)
def test_flags_become_settings(flags: list[str], field: str, value: Any):
    config = config_of(*flags)
    assert getattr(config if hasattr(config, field) else config.extractor, field) == value


@pytest.mark.parametrize(
    ("flags", "workers"),
    [
        ([], 1),
        (["--direct_num_workers=3"], 1),
        (["--num_workers=8"], 8),
        (["--num_workers=2", "--max_num_workers=8"], 8),
        (["--num_workers=2", "--max_num_workers=8", "--autoscaling_algorithm=NONE"], 2),
        ([*ON_DATAFLOW, "--max_num_workers=5"], 5),
        (ON_DATAFLOW, 1),
    ],
)
def test_workers_are_those_that_the_run_may_have(flags: list[str], workers: int):
    assert config_of(*flags).workers == workers


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        (["10", "11", "12"], (10, 11, 12)),
        (["10, 11 12"], (10, 11, 12)),
        (["10-13", "11"], (10, 11, 12, 13)),
        (["23", "2-3,0"], (0, 2, 3, 23)),
        (["all"], ()),
    ],
)
def test_layers_can_be_written_in_several_ways(words: list[str], layers: tuple[int, ...]):
    assert parse_layers(words) == layers


@pytest.mark.parametrize("word", ["", "x", "-1", "1.5", "23-10", "99999"])
def test_a_word_that_is_not_a_layer_is_named(word: str):
    with pytest.raises(ConfigError, match=f"^--layers_to_extract: {word!r} is not a layer"):
        parse_layers([word])


@pytest.mark.parametrize("word", ["resid", ","])
def test_a_word_that_is_not_a_hook_point_is_named(word: str):
    with pytest.raises(ConfigError, match=r"^--hook_points: '.*' is not a hook point; .*mlp_out"):
        config_of("--hook_points", word)


@pytest.mark.parametrize(
    ("flags", "output_dir"),
    [
        (["--output_dir=out/"], "out"),
        (["--output_dir", "~/out"], "/home/someone/out"),
        (["--output_dir", "gs://bucket/~/b/"], "gs://bucket/~/b"),
        (["--gcs_bucket", "gs://bucket/a", "--upload_to_cloud", "True"], "gs://bucket/a"),
        (["--upload_to_cloud=true", "--gcs_bucket=bucket/a/"], "gs://bucket/a"),
    ],
)
def test_the_output_folder_has_two_spellings(monkeypatch, flags: list[str], output_dir: str):
    monkeypatch.setenv("HOME", "/home/someone")
    assert config_of(*flags).output_dir == output_dir


@pytest.mark.parametrize("folder", ["", "gs:///folder", "s3://bucket/a", "out[1]", "gs://bucket/*"])
def test_an_impossible_output_folder_is_named(folder: str):
    with pytest.raises(ConfigError) as error:
        config_of("--output_dir", folder)
    assert str(error.value).startswith(f"--output_dir {folder!r}: must ")


def test_an_output_folder_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(ConfigError, match=r"--output_dir .*out': a file"):
        config_of("--output_dir", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--mesh_shape", "8"], "--mesh_shape: expected two positive numbers"),
        (["--batch_size", "0"], "--batch_size: expected a whole number of at least 1, got '0'"),
        (["--max_rejected", "-1"], "--max_rejected: expected a whole number"),
        (["--max_output_bytes=1.5TB"], "--max_output_bytes: expected bytes"),
        (["--pooling", "max"], "--pooling: invalid choice: 'max'"),
        (["--overwrite=maybe"], "--overwrite: expected True or False, got 'maybe'"),
        (["--direct_num_workers", "two"], "--direct_num_workers: invalid int value: 'two'"),
        (["--num_workers=0"], "--num_workers=0: must be at least 1"),
        (["--samples_per_shard=automatic"], "--samples_per_shard: expected auto or a whole number"),
        (
            ["--samples_per_shard=auto", *ON_DATAFLOW],
            "--samples_per_shard=auto needs a number of workers: give --num_workers",
        ),
        (["--runner=DataflowRunner", "--output_dir=out"], "--output_dir=out: a folder on this"),
        ([*ON_DATAFLOW, "--tasks_file=local.json"], "--tasks_file=local.json: a path on this"),
        ([*ON_DATAFLOW, "--temp_location=gs://bb/temp"], "--temp_location=gs://bb/temp: must be"),
        ([*ON_DATAFLOW, "--staging_location=b/s"], "--staging_location=b/s: must be gs://"),
        (["--runner=DataflowRuner"], "--runner=DataflowRuner: "),
        (["--layers_to_extract=all", "--layers_to_extract=2"], "--layers_to_extract: all does not"),
        (["--layers_to_extract", "all", "99"], "--layers_to_extract: all does not"),
        (["--layers_to_extract", "all", "foo"], "--layers_to_extract: all does not"),
        (["--gcs_bucket=gs://b"], "--gcs_bucket and --upload_to_cloud True go together"),
        (["--upload_to_cloud=True"], "--gcs_bucket and --upload_to_cloud True go together"),
    ],
)
def test_an_impossible_value_is_named(flags: list[str], named: str):
    with pytest.raises(ConfigError) as error:
        config_of(*flags)
    assert named in str(error.value)


def test_a_local_model_on_dataflow_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config_of(*ON_DATAFLOW)
    assert not caplog.records
    config_of(*ON_DATAFLOW, f"--model_path={tmp_path}")
    assert f"--model_path={tmp_path}" in caplog.text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--batch-size=4"], "unknown flag --batch-size=4. Did you mean --batch_size?"),
        (["--direct_num_worker=2"], "Did you mean --direct_num_workers?"),
        (["--layers=10"], "Did you mean --layers_to_extract?"),
        (["--overwrite", "true", "stray"], "unknown flag stray."),
        (["--efficiency=0.3"], "unknown flag --efficiency=0.3."),
    ],
)
def test_an_unknown_flag_is_refused_and_the_nearest_one_named(flags: list[str], named: str):
    with pytest.raises(ConfigError) as error:
        config_of(*flags)
    assert named in str(error.value)


def test_beam_gets_its_own_flags_and_runs_here_by_default():
    options = parse_flags([*REQUIRED, "--direct_running_mode", "multi_processing"])[1]
    assert options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    assert options.view_as(StandardOptions).runner == "FnApiRunner"
    options = parse_flags([*REQUIRED, *ON_DATAFLOW])[1]
    assert options.view_as(StandardOptions).runner == "DataflowRunner"


def test_help_has_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse_flags(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "--layers_to_extract LAYER [LAYER ...]",
        "(default: 10-23)",
        "(default: 512)",
        "(default: all local devices, 1)",
        "dtype in which the model computes (default: bfloat16)",
        "rows of 512 token slots per device and step",
    ):
        assert expected in text
    assert "None" not in text
