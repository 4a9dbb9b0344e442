"""A job is checked against its model and inputs before it starts, and described in full."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from beam_pipeline.config import ConfigError
from beam_pipeline.job import Job, open_job
from beam_pipeline.options import parse_flags
from corpus.template import load_template
from qwen.source import open_model
from transforms.tokenize_tasks import LengthLimit


def opened(tasks: Path, *flags: str) -> Job:
    argv = ["--model_path", "random:tiny", "--tasks_file", str(tasks), *flags]
    return open_job(parse_flags(argv)[0])


def test_the_model_decides_what_the_flags_leave_open(example_tasks: Path):
    job = opened(example_tasks, "--layers_to_extract=all")
    assert job.config.extractor.layers == tuple(range(24))
    assert job.limit == LengthLimit(32_768, "reject")
    assert job.patterns == (f"{example_tasks}/*",)
    assert job.template == load_template("digits")
    assert job.record_kind.hidden == 64


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--layers_to_extract", "3", "24"], "layer 24 does not exist; this model has 24 layers"),
        (["--layers_to_extract", "24-30"], "and the default is 10-23"),
    ],
)
def test_a_layer_that_the_model_does_not_have_is_named(example_tasks: Path, flags, named: str):
    with pytest.raises(ConfigError, match=f"^--layers_to_extract: .*{named}"):
        opened(example_tasks, *flags)


def test_the_description_says_all_that_decides_about_bytes(example_tasks: Path):
    run = opened(example_tasks).describe()
    assert run.model_name == "random:tiny"
    assert run.hidden_dim == 64
    assert run.hook_points == ("resid_post",)
    assert run.weights == {"fingerprint": "random:tiny, seed 0", "random": True}
    assert run.tokenizer == {"fingerprint": open_model("random:tiny").tokenizer_fingerprint()}
    assert run.prompt_template == load_template("digits").to_json()
    assert run.versions["jax"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--layers_to_extract", "3"],
        ["--hook_points", "mlp_out"],
        ["--pooling", "mean"],
        ["--compute_dtype", "float32"],
        ["--storage_dtype", "bfloat16"],
        ["--batch_size", "4"],
        ["--mesh_shape", "1,1"],
        ["--max_length", "100"],
        ["--overlength", "truncate"],
        ["--samples_per_shard", "100"],
        ["--prompt_template", "numbered"],
        ["--augment", "2"],
        ["--model_path", "random:Qwen2.5-0.5B"],
    ],
    ids=lambda flags: flags[0],
)
def test_every_setting_that_decides_about_bytes_is_described(example_tasks: Path, flags: list[str]):
    assert opened(example_tasks, *flags).describe() != opened(example_tasks).describe()


@pytest.mark.parametrize(
    "flags",
    [
        ["--overwrite"],
        ["--allow_nonfinite"],
        ["--max_rejected", "3"],
        ["--output_dir", "other"],
        ["--compile_cache", "other"],
    ],
    ids=lambda flags: flags[0],
)
def test_other_settings_make_the_same_run(example_tasks: Path, flags: list[str]):
    assert opened(example_tasks, *flags).describe() == opened(example_tasks).describe()


def test_a_prompt_longer_than_the_model_takes_is_refused(example_tasks: Path):
    with pytest.raises(ConfigError, match=r"--max_length=32769 is more than the 32768"):
        opened(example_tasks, "--max_length", "32769")


def test_a_chat_needs_a_chat_template(example_tasks: Path, checkpoint: Path, tmp_path: Path):
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    settings = bare / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("chat_template", "something_else"))

    def open_with(model: Path, template: str) -> Job:
        flags = ["--model_path", str(model), "--prompt_template", template]
        return opened(example_tasks, *flags, "--layers_to_extract", "all")

    assert open_with(checkpoint, "digits-chat").template.chat
    assert not open_with(bare, "digits").template.chat
    with pytest.raises(ConfigError, match=r"--prompt_template digits-chat: .*bare has no chat"):
        open_with(bare, "digits-chat")


def test_a_model_that_changes_is_another_run(example_tasks: Path, checkpoint: Path, tmp_path: Path):
    first = shutil.copytree(checkpoint, tmp_path / "first")
    second = shutil.copytree(checkpoint, tmp_path / "second")
    weights = second / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    one, other = (
        opened(example_tasks, "--model_path", str(model), "--layers_to_extract", "all").describe()
        for model in (first, second)
    )
    assert one.weights != other.weights
    assert dataclasses.replace(other, model_name=str(first), weights=one.weights) == one
