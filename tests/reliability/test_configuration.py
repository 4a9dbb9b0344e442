"""A run that differs in anything that decides about bytes is refused, and the difference named."""

import json
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipeline.config import Config, Run
from beam_pipeline.options import parse_flags
from beam_pipeline.pipeline import prepare
from tests.conftest import ROOT
from transforms.commit_run import OtherRunError, check_output_dir, configuration, differences

DECIDE: dict[str, tuple[Any, ...]] = {
    "model_path": ("random:tiny", "random:Qwen2.5-0.5B"),
    "layers": ((0, 1), (0, 2), (23,), ()),
    "hook_points": (("resid_post",), ("mlp_out",), ("resid_pre", "resid_post")),
    "pooling": ("last", "mean", "none"),
    "prompt_template": ("digits", "numbered"),
    "max_length": (None, 100, 32_768),
    "overlength": ("reject", "truncate"),
    "compute_dtype": ("float32", "bfloat16"),
    "storage_dtype": ("float32", "bfloat16"),
    "batch_size": (1, 8),
    "mesh_shape": (None, (1, 1), (2, 1)),
    "samples_per_shard": (1, 512),
    "augment": (1, 2, 8),
    "augment_seed": (0, 1),
    "augment_keep_background": (False, True),
}
"""Settings that decide about the bytes of files, with values that are worlds apart."""

DO_NOT_DECIDE = {
    *("tasks_file", "output_dir", "compile_cache", "overwrite", "accelerator"),
    *("max_rejected", "max_output_bytes", "allow_nonfinite", "progress"),
}
"""Whatever the tasks are, the plan has a digest of their samples."""

FIELD = {
    "model_path": {"model_name", "weights.fingerprint", "hidden_dim"},
    "layers": {"layers_extracted", "num_layers_extracted"},
    "hook_points": {"hook_point", "hook_points"},
    "max_length": {"settings.max_length"},
    "overlength": {"settings.overlength"},
    "batch_size": {"settings.batch_size"},
    "mesh_shape": {"settings.mesh_shape"},
    "samples_per_shard": {"settings.samples_per_shard"},
}
"""What a difference is called, where it is not called as the setting."""

PLAIN = parse_flags(
    ["--model_path=random:tiny", f"--tasks_file={ROOT / 'examples' / 'tasks' / 'fall.json'}"]
)[0]


@cache
def run_of(**chosen: Any) -> Run:
    return prepare(replace(PLAIN, **chosen))


def effective(chosen: dict[str, Any]) -> dict[str, Any]:
    """The settings, those that say the same made equal."""
    same = dict(chosen)
    same["max_length"] = chosen["max_length"] or 32_768
    same["layers"] = chosen["layers"] or tuple(range(24))
    if chosen["augment"] == 1:
        same |= {"augment_seed": 0, "augment_keep_background": False}
    return same


def test_every_setting_is_known_to_decide_or_not():
    """A new flag belongs into one of the two lists, and if into the first, into `run.json`."""
    assert {field.name for field in fields(Config)} == DECIDE.keys() | DO_NOT_DECIDE


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in DECIDE.items()}),
    st.dictionaries(st.sampled_from(sorted(DECIDE)), st.integers(0, 3), max_size=3),
)
def test_just_the_settings_that_differ_are_named(first: dict[str, Any], changes: dict[str, int]):
    second = first | {
        name: DECIDE[name][index % len(DECIDE[name])] for name, index in changes.items()
    }
    there, now = (configuration(run_of(**chosen).description) for chosen in (first, second))
    named = {line.partition(" is ")[0] for line in differences(there, now)}
    one, other = effective(first), effective(second)
    changed = {name for name in one if one[name] != other[name]}
    for name in changed:
        expected = FIELD.get(name, {name})
        if name.startswith("augment"):
            expected = {"settings.augmentation"}
        assert any(each.startswith(tuple(expected)) for each in named), (name, named)
    assert bool(named) == bool(changed)


@pytest.mark.parametrize("name", sorted(DECIDE))
def test_a_run_begun_with_another_setting_is_refused(tmp_path: Path, name: str):
    base = {"augment": 2} if name.startswith("augment_") else {}
    first, second = DECIDE[name][:2]
    described = configuration(run_of(**base | {name: first}).description)
    (tmp_path / "run.json").write_text(json.dumps({"configuration": described, "plan": {}}))
    check_output_dir(str(tmp_path), run_of(**base | {name: first}).description)
    with pytest.raises(OtherRunError, match=r"holds the output of another run: .* there, .* now"):
        check_output_dir(str(tmp_path), run_of(**base | {name: second}).description)
