import dataclasses
import shutil
from pathlib import Path

import pytest

from beam_pipeline.config import ConfigError, resolve_layers
from beam_pipeline.options import parse_flags
from beam_pipeline.pipeline import prepare
from corpus.template import TemplateError, load_template
from qwen.source import open_model
from transforms.extract_activations import ExtractorSettings
from transforms.read_tasks import TasksNotFoundError
from transforms.tokenize_tasks import LengthLimit


@pytest.mark.parametrize(
    ("asked", "num_layers", "layers"),
    [
        (None, 24, tuple(range(10, 24))),
        (None, 36, tuple(range(10, 24))),
        ((), 4, (0, 1, 2, 3)),
        ((2, 0, 2), 3, (0, 2)),
        ((23,), 24, (23,)),
    ],
)
def test_layers_are_those_of_the_model(asked, num_layers: int, layers: tuple[int, ...]):
    assert resolve_layers(asked, num_layers) == layers


@pytest.mark.parametrize(
    ("asked", "num_layers", "message"),
    [
        ((24,), 24, "layer 24 does not exist (this model has 24 layers, 0 to 23)"),
        ((3, 24, 25), 24, "layers 24, 25 do not exist (this model has 24 layers, 0 to 23)"),
        (None, 12, "layers 12, 13, 14, 15, 16, 17, 18, 19 and 4 more do not exist (the default is"),
        (None, 12, "(the default is 10-23; this model has 12 layers, 0 to 11)"),
    ],
)
def test_a_layer_out_of_range_is_named(asked, num_layers: int, message: str):
    with pytest.raises(ConfigError) as error:
        resolve_layers(asked, num_layers)
    assert str(error.value).startswith("--layers_to_extract: layer")
    assert message in str(error.value)


def prepared(tasks: Path, *flags: str):
    argv = ["--model_path", "random:tiny", "--tasks_file", str(tasks), *flags]
    return prepare(parse_flags(argv)[0])


def test_a_run_is_resolved_against_model_and_inputs(example_tasks: Path):
    flags = ["--batch_size=4", "--mesh_shape=2,1", "--pooling=mean", "--compile_cache=/compiled"]
    run = prepared(example_tasks, *flags)
    assert run.patterns == (f"{example_tasks}/*",)
    assert run.template == load_template("digits")
    assert run.limit == LengthLimit(32_768, "reject")
    assert run.extractor == ExtractorSettings(
        model_path="random:tiny",
        weights_fingerprint="random:tiny, seed 0",
        layers=tuple(range(10, 24)),
        pooling="mean",
        compute_dtype="bfloat16",
        storage_dtype="float32",
        batch_size=4,
        mesh_shape=(2, 1),
        compile_cache="/compiled",
    )


def test_the_description_says_all_that_decides_about_bytes(example_tasks: Path):
    description = prepared(example_tasks).description
    assert description.model_name == "random:tiny"
    assert description.hidden_dim == 64
    assert description.hook_points == ("resid_post",)
    assert description.weights == {"fingerprint": "random:tiny, seed 0", "random": True}
    assert description.tokenizer == {
        "fingerprint": open_model("random:tiny").tokenizer_fingerprint()
    }
    assert description.prompt_template == load_template("digits").to_json()
    assert description.versions["jax"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--layers_to_extract", "3"],
        ["--pooling", "mean"],
        ["--compute_dtype", "float32"],
        ["--storage_dtype", "bfloat16"],
        ["--batch_size", "4"],
        ["--mesh_shape", "1,1"],
        ["--max_length", "100"],
        ["--overlength", "truncate"],
        ["--samples_per_shard", "100"],
        ["--prompt_template", "numbered"],
        ["--model_path", "random:Qwen2.5-0.5B"],
    ],
    ids=lambda flags: flags[0],
)
def test_every_setting_that_decides_about_bytes_is_described(example_tasks: Path, flags: list[str]):
    assert prepared(example_tasks, *flags).description != prepared(example_tasks).description


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
def test_what_decides_about_no_byte_makes_no_other_run(example_tasks: Path, flags: list[str]):
    assert prepared(example_tasks, *flags).description == prepared(example_tasks).description


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--max_length", "32769"], ConfigError, "--max_length=32769 is more than the 32768 posi"),
        (["--prompt_template", "absent"], TemplateError, "prompt template 'absent' is neither one"),
        (["--tasks_file", "absent"], TasksNotFoundError, "--tasks_file 'absent': no such file"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(
    example_tasks: Path, flags: list[str], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        prepared(example_tasks, *flags)


def test_a_chat_needs_a_chat_template(example_tasks: Path, checkpoint: Path, tmp_path: Path):
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    settings = bare / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("chat_template", "something_else"))

    def run_of(model: Path, template: str):
        flags = ["--model_path", str(model), "--prompt_template", template]
        return prepared(example_tasks, *flags, "--layers_to_extract", "all")

    assert run_of(checkpoint, "digits-chat").template.chat
    assert not run_of(bare, "digits").template.chat
    with pytest.raises(
        ConfigError, match=r"--prompt_template digits-chat: the tokenizer of .*bare"
    ):
        run_of(bare, "digits-chat")


def test_a_model_that_changes_is_another_run(example_tasks: Path, checkpoint: Path, tmp_path: Path):
    first = shutil.copytree(checkpoint, tmp_path / "first")
    second = shutil.copytree(checkpoint, tmp_path / "second")
    weights = second / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    one, other = (
        prepared(example_tasks, "--model_path", str(model), "--layers_to_extract", "all")
        for model in (first, second)
    )
    assert one.description.weights != other.description.weights
    unlike = dataclasses.replace(other.description, model_name=str(first))
    assert dataclasses.replace(unlike, weights=one.description.weights) == one.description
