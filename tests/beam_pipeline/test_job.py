"""Checks of a job against its model and inputs before it starts, and its full description."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from beam_pipeline.config import ConfigError
from beam_pipeline.job import Job, open_job
from beam_pipeline.options import parse_flags
from corpus.template import load_template
from qwen.source import open_model
from tests.qwen.checkpoints import offline_hub_cache
from transforms.auto_shards import AutoShards
from transforms.commit_run import OtherRunError, configuration
from transforms.find_inputs import resolve_patterns


def opened(tasks: Path, *flags: str) -> Job:
    argv = ["--model_path", "random:tiny", "--tasks_file", str(tasks), *flags]
    return open_job(parse_flags(argv)[0])


def test_the_model_decides_what_the_flags_leave_open(example_tasks: Path):
    job = opened(example_tasks, "--layers_to_extract=all")
    assert job.config.extractor.layers == tuple(range(24))
    assert (job.rules.max_length, job.rules.vocab_size) == (32_768, 2048)
    assert job.patterns == resolve_patterns([str(example_tasks)], job.config.output_dir)
    assert job.template == load_template("digits")
    assert {kind.hidden for kind in job.record_kinds.values()} == {64}


def test_the_description_says_all_that_decides_about_bytes(example_tasks: Path):
    run = opened(example_tasks).describe()
    assert run.model_name == "random:tiny"
    assert run.hidden_dim == 64
    assert run.hook_points == ("resid_post",)
    assert run.weights == {
        "fingerprint": "random:tiny, seed 0",
        "random": True,
        "commit": None,
    }
    assert run.model["rms_norm_eps"] == 1e-6
    source = open_model("random:tiny")
    digits = [source.tokenizer().encode(str(digit)) for digit in range(10)]
    assert run.tokenizer == {"fingerprint": source.tokenizer_fingerprint(), "digits": digits}
    assert run.prompt_template == load_template("digits").to_json()
    assert run.versions["jax"]


DECIDING = [
    "--layers_to_extract=3",
    "--hook_points=mlp_out",
    "--pooling=mean",
    "--compute_dtype=float32",
    "--storage_dtype=bfloat16",
    "--batch_size=4",
    "--mesh_shape=1,1",
    "--max_length=100",
    "--overlength=truncate",
    "--samples_per_shard=100",
    "--samples_per_shard=auto",
    "--prompt_template=numbered",
    "--augment=2",
    "--ignore_config=auto_map",
    "--text_field=body",
    "--model_path=random:Qwen2.5-0.5B",
]
OTHERS = [
    *("--overwrite", "--allow_nonfinite", "--max_rejected=3", "--output_dir=x", "--no_progress"),
    "--num_workers=3",
]


@pytest.mark.parametrize("flag", [*DECIDING, *OTHERS])
def test_the_settings_that_decide_about_bytes_make_another_run(example_tasks: Path, flag: str):
    same = opened(example_tasks, flag).describe() == opened(example_tasks).describe()
    assert same == (flag in OTHERS)


def test_shards_for_workers_are_those_of_the_run_that_began_the_folder(
    example_tasks: Path, tmp_path: Path
):
    flags = ["--samples_per_shard=auto", f"--output_dir={tmp_path}"]
    assert opened(example_tasks, *flags, "--num_workers=5").auto_workers == 5
    begun = opened(example_tasks, *flags, "--num_workers=64").describe()
    content = {"configuration": configuration(begun), "plan": {}}
    (tmp_path / "run.json").write_text(json.dumps(content))
    again = opened(example_tasks, *flags, "--num_workers=5")
    kinds = tuple(set(again.record_kinds.values()))
    assert again.samples_per_shard == AutoShards(64, kinds)
    assert again.describe() == begun
    assert opened(example_tasks, *flags, "--overwrite", "--num_workers=5").auto_workers == 5
    assert opened(example_tasks, f"--output_dir={tmp_path}").samples_per_shard == 512
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OtherRunError, match=r"run\.json"):
        opened(example_tasks, *flags)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--layers_to_extract=24-30", "layer 24 does not exist; .* 24 layers, .* default is 10-23"),
        ("--max_length=32769", "32768 positions"),
        ("--prepend_bos=1024", "1024: not a token of this model"),
    ],
)
def test_a_flag_that_does_not_fit_the_model_is_refused(example_tasks: Path, flag: str, named: str):
    with pytest.raises(ConfigError, match=f"^{flag.partition('=')[0]}.*{named}"):
        opened(example_tasks, flag)


def test_workers_get_the_commit_that_the_launcher_has_resolved(
    example_tasks: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The hub's own cache is used offline while the main branch moves on."""
    name, commit = f"org/{tmp_path.name}", "c" * 40
    cache = offline_hub_cache(checkpoint, tmp_path, monkeypatch, commit)
    job = opened(example_tasks, "--model_path", f"{name}@main", "--layers_to_extract", "all")
    run = job.describe()
    assert (run.model_name, run.weights["commit"]) == (f"{name}@main", commit)
    (cache / "refs" / "main").write_text("d" * 40)
    assert job.config.extractor.model_path == f"{name}@{commit}"
    assert open_model(job.config.extractor.model_path).weights_fingerprint()


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
    edited = json.loads((second / "config.json").read_text()) | {"rope_theta": 5e5}
    (second / "config.json").write_text(json.dumps(edited))
    flags = ["--model_path", str(second), "--layers_to_extract", "all"]
    assert opened(example_tasks, *flags).describe().model == {**one.model, "rope_theta": 5e5}
    assert dataclasses.replace(other, model_name=str(first), weights=one.weights) == one
