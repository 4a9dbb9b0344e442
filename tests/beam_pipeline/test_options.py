from typing import Any

import pytest
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    StandardOptions,
)

from beam_pipeline.config import Config, ConfigError
from beam_pipeline.options import parse_flags, parse_layers

REQUIRED = ["--model_path", "random:tiny", "--tasks_file", "tasks"]


def config_of(*flags: str) -> Config:
    return parse_flags([*REQUIRED, *flags])[0]


def options_of(*flags: str):
    return parse_flags([*REQUIRED, *flags])[1]


def test_the_defaults_are_those_of_the_help():
    config = config_of()
    expected = {
        "tasks_file": ("tasks",),
        "output_dir": "activations",
        "layers": None,
        "pooling": "last",
        "hook_points": ("resid_post",),
        "prompt_template": "digits",
        "max_length": None,
        "overlength": "reject",
        "compute_dtype": "bfloat16",
        "storage_dtype": "float32",
        "batch_size": 8,
        "mesh_shape": None,
        "samples_per_shard": 512,
        "max_rejected": None,
        "allow_nonfinite": False,
        "overwrite": False,
        "accelerator": None,
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        (["10"], (10,)),
        (["10", "11", "12"], (10, 11, 12)),
        (["10,11,12"], (10, 11, 12)),
        (["10, 11 12"], (10, 11, 12)),
        (["10, ", "11,"], (10, 11)),
        (["10-13"], (10, 11, 12, 13)),
        (["0", "2-3,23"], (0, 2, 3, 23)),
        (["3-3"], (3,)),
        (["all"], ()),
        (["0", "all"], ()),
    ],
)
def test_layers_can_be_written_in_several_ways(words: list[str], layers: tuple[int, ...]):
    assert parse_layers(words) == layers
    assert config_of("--layers_to_extract", *words).layers == layers


@pytest.mark.parametrize("words", [["mlp_out", "resid_pre"], ["resid_pre,mlp_out, mlp_out"]])
def test_hook_points_can_be_written_in_several_ways(words: list[str]):
    assert config_of("--hook_points", *words).hook_points == ("resid_pre", "mlp_out")


@pytest.mark.parametrize("word", ["resid", "hook_mlp_out", "blocks.0.hook_mlp_out", "all", ","])
def test_what_is_not_a_hook_point_is_named(word: str):
    with pytest.raises(ConfigError, match=r"^--hook_points: '.*' is not a hook point; give one"):
        config_of("--hook_points", word)


WORDS = ["x", "-1", "1.5", "10-", "-", "23-10", "10..23", "10:23", "99999", "All", "10-23-5"]


@pytest.mark.parametrize("word", WORDS)
def test_what_is_not_a_layer_is_named(word: str):
    with pytest.raises(ConfigError) as error:
        parse_layers(["1", word])
    assert str(error.value) == (
        f"--layers_to_extract: {word!r} is not a layer; give numbers (10 11 12), a range (10-23), "
        "or all"
    )


@pytest.mark.parametrize("nothing", ["", " ", ","])
def test_no_layer_is_not_all_layers(nothing: str):
    with pytest.raises(ConfigError, match="--layers_to_extract: '' is not a layer"):
        parse_layers([nothing])


@pytest.mark.parametrize(
    ("flags", "output_dir"),
    [
        (["--output_dir", "out"], "out"),
        (["--output_dir=out/"], "out"),
        (["--output_dir", "/a/b//"], "/a/b"),
        (["--output_dir", "/"], "/"),
        (["--output_dir", "~/out"], "/home/someone/out"),
        (["--output_dir", "gs://bucket"], "gs://bucket"),
        (["--output_dir", "gs://bucket/"], "gs://bucket"),
        (["--output_dir", "gs://bucket/a/b/"], "gs://bucket/a/b"),
        (["--output_dir", "gs://bucket/~"], "gs://bucket/~"),
        (["--gcs_bucket", "gs://bucket/a", "--upload_to_cloud", "True"], "gs://bucket/a"),
        (["--gcs_bucket", "bucket/a/", "--upload_to_cloud", "true"], "gs://bucket/a"),
        (["--upload_to_cloud=True", "--gcs_bucket=gs://bucket"], "gs://bucket"),
        (["--upload_to_cloud", "False"], "activations"),
    ],
)
def test_the_output_folder_has_two_spellings(monkeypatch, flags: list[str], output_dir: str):
    monkeypatch.setenv("HOME", "/home/someone")
    assert config_of(*flags).output_dir == output_dir


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--gcs_bucket", "gs://b"],
            "--gcs_bucket and --upload_to_cloud True go together; the new",
        ),
        (["--gcs_bucket", "gs://b", "--upload_to_cloud", "False"], "go together"),
        (["--upload_to_cloud", "True"], "--gcs_bucket and --upload_to_cloud True go together"),
        (
            ["--gcs_bucket", "gs://b", "--upload_to_cloud", "True", "--output_dir", "gs://b"],
            "give either --output_dir or --gcs_bucket, not both",
        ),
        (["--upload_to_cloud", "yes"], "argument --upload_to_cloud: expected True or False, got"),
        (["--gcs_bucket", "gs://", "--upload_to_cloud", "True"], "--output_dir 'gs://': must be a"),
        (["--output_dir", ""], "--output_dir '': must be a local folder or gs://BUCKET/FOLDER"),
        (["--output_dir", "gs:///folder"], "--output_dir 'gs:///folder': must be a local folder"),
        (["--output_dir", "s3://bucket/a"], "--output_dir 's3://bucket/a': must be a local folder"),
        (
            ["--output_dir", "file:///a"],
            "--output_dir 'file:///a': must be a local folder or gs://",
        ),
        (["--output_dir", "out[1]"], "--output_dir 'out[1]': must not hold '['"),
        (["--output_dir", "gs://bucket/a*"], "--output_dir 'gs://bucket/a*': must not hold '*'"),
    ],
)
def test_an_output_folder_that_cannot_be_is_refused(flags: list[str], message: str):
    with pytest.raises(ConfigError) as error:
        config_of(*flags)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--mesh_shape", "8,1"], "mesh_shape", (8, 1)),
        (["--mesh_shape=4, 2"], "mesh_shape", (4, 2)),
        (["--batch_size", "1"], "batch_size", 1),
        (["--samples_per_shard", "100000"], "samples_per_shard", 100_000),
        (["--max_length", "512"], "max_length", 512),
        (["--max_rejected", "0"], "max_rejected", 0),
        (["--overwrite"], "overwrite", True),
        (["--overwrite=false"], "overwrite", False),
        (["--allow_nonfinite", "True"], "allow_nonfinite", True),
        (["--allow_nonfinite", "--overwrite=TRUE"], "allow_nonfinite", True),
        (["--tasks_file", "more", "most"], "tasks_file", ("tasks", "more", "most")),
        (["--layers_to_extract", "1", "--layers_to_extract", "3"], "layers", (1, 3)),
    ],
)
def test_values_are_read(flags: list[str], field: str, value: Any):
    assert getattr(config_of(*flags), field) == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mesh_shape", "8"], "argument --mesh_shape: expected two positive numbers, data,model"),
        (["--mesh_shape", "8x1"], "such as 8,1; got '8x1'"),
        (["--mesh_shape", "0,1"], "got '0,1'"),
        (["--mesh_shape", "8,-1"], "got '8,-1'"),
        (["--mesh_shape", "2,2,2"], "got '2,2,2'"),
        (["--batch_size", "0"], "--batch_size: expected a whole number of at least 1, got '0'"),
        (["--batch_size", "1.5"], "--batch_size: expected a whole number of at least 1, got '1.5'"),
        (["--batch_size", "-1"], "--batch_size: expected a whole number of at least 1, got '-1'"),
        (["--samples_per_shard", "many"], "--samples_per_shard: expected a whole number"),
        (["--max_rejected", "-1"], "--max_rejected: expected a whole number"),
        (["--pooling", "max"], "argument --pooling: invalid choice: 'max' (choose from 'last', 'm"),
        (["--compute_dtype", "float16"], "choose from 'float32', 'bfloat16'"),
        (["--overlength", "keep"], "choose from 'reject', 'truncate'"),
        (["--overwrite=maybe"], "argument --overwrite: expected True or False, got 'maybe'"),
        (["--layers_to_extract"], "argument --layers_to_extract: expected at least one argument"),
        (["--direct_num_workers", "two"], "--direct_num_workers: invalid int value: 'two'"),
        (["--direct_running_mode", "fast"], "--direct_running_mode: invalid choice: 'fast'"),
    ],
)
def test_a_value_that_cannot_be_is_named(flags: list[str], message: str):
    with pytest.raises(ConfigError) as error:
        config_of(*flags)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        ([], "--model_path, --tasks_file"),
        (["--model_path", "m"], "--tasks_file"),
        (["--tasks_file", "t"], "--model_path"),
    ],
)
def test_what_is_required_is_asked_for(argv: list[str], missing: str):
    with pytest.raises(ConfigError, match=f"arguments are required: {missing} \\(see --help\\)"):
        parse_flags(argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batchsize", "4"], "unknown flag --batchsize. Did you mean --batch_size?"),
        (["--batch-size=4"], "unknown flag --batch-size=4. Did you mean --batch_size?"),
        (["--layers", "4"], "unknown flag --layers."),
        (["--direct_num_worker=2"], "Did you mean --direct_num_workers?"),
        (["--over"], "unknown flag --over."),
        (["--zzz"], "unknown flag --zzz. --help lists the flags of this job."),
        (["--overwrite", "true", "stray"], "unknown flag stray."),
        (["-x"], "unknown flag -x."),
    ],
)
def test_an_unknown_flag_is_refused_and_the_nearest_one_named(flags: list[str], message: str):
    with pytest.raises(ConfigError) as error:
        config_of(*flags)
    assert str(error.value).startswith("unknown flag ")
    assert message in str(error.value)


def test_beam_gets_its_own_flags():
    options = options_of(
        "--direct_num_workers=2",
        "--direct_running_mode",
        "multi_processing",
        "--project=p",
        "--experiments=one",
    )
    assert options.view_as(DirectOptions).direct_num_workers == 2
    assert options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    assert options.view_as(GoogleCloudOptions).project == "p"


@pytest.mark.parametrize(
    ("flags", "runner"),
    [
        ([], "FnApiRunner"),
        (["--runner=DirectRunner"], "DirectRunner"),
        (["--runner", "DataflowRunner"], "DataflowRunner"),
    ],
)
def test_the_job_runs_here_unless_a_runner_is_named(flags: list[str], runner: str):
    assert options_of(*flags).view_as(StandardOptions).runner == runner


def test_help_has_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse_flags(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "model:",
        "tasks and prompts:",
        "activations:",
        "output:",
        "--layers_to_extract LAYER [LAYER ...] layers, counted from 0: numbers, ranges such as "
        "10-23, or all (default: 10-23)",
        "--samples_per_shard SAMPLES samples in a file (default: 512)",
        "(default: all local devices, 1)",
        "dtype of the model (default: bfloat16)",
        "dtype in the files (default: float32)",
    ):
        assert expected in text
    assert "None" not in text
