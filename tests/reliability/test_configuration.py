"""Refusal of a run that differs in a setting that determines bytes, by the setting's name."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from activation_dataset.metadata import RunDescription
from beam_pipeline.config import Config
from beam_pipeline.job import open_job
from beam_pipeline.options import parse_flags
from qwen.settings import ExtractorSettings
from tests.conftest import ROOT
from transforms.commit_run import configuration, differences

DECIDE: dict[str, tuple[Any, ...]] = {
    "model_path": ("random:tiny", "random:Qwen2.5-0.5B"),
    "layers": ((0, 1), (0, 2), (23,), ()),
    "hook_points": (("resid_post",), ("mlp_out",), ("resid_pre", "resid_post")),
    "pooling": ("last", "mean", "none"),
    "prompt_template": ("digits", "numbered"),
    "max_length": (None, 100, 32_768),
    "overlength": ("reject", "truncate"),
    "compute_dtype": ("float32", "bfloat16"),
    "storage_dtype": ("float32", "bfloat16", "float8_e4m3", "int8"),
    "batch_size": (1, 8),
    "mesh_shape": (None, (1, 1), (2, 1)),
    "samples_per_shard": (1, 512, "auto"),
    "workers": (1, 8),
    "augment": (1, 2, 8),
    "augment_seed": (0, 1),
    "augment_keep_background": (False, True),
    "ignore_config": ((), ("auto_map",)),
    "text_field": (None, "text"),
    "context_size": (None, 200),
    "context_overlap": (0, 5),
    "prepend_bos": (None, "<|endoftext|>"),
    "tokens": ("all", "every:2"),
}
"""Settings that determine the bytes of files, with some values; `workers` only with "auto"."""

DO_NOT_DECIDE = {
    *("tasks_file", "output_dir", "compile_cache", "overwrite", "accelerator", "environment"),
    *("max_rejected", "max_output_bytes", "allow_nonfinite", "no_progress", "weights_fingerprint"),
    *(
        "expected_config",
        "expected_versions",
        "expected_ops",
        "efficiency",
        "device_price",
        "storage_bandwidth",
        "upload_memory",
    ),
}
"""Other settings. The plan has a digest of the samples in `tasks_file`."""

FIELD = {
    "model_path": "model_name",
    "layers": "layers_extracted",
    "workers": "samples_per_shard",
}
"""Names that a reported difference uses instead of the setting's name."""

PLAIN = parse_flags(
    ["--model_path=random:tiny", f"--tasks_file={ROOT / 'examples' / 'tasks' / 'fall.json'}"]
)[0]


EXTRACTOR = {field.name for field in fields(ExtractorSettings)}


@cache
def described(**chosen: Any) -> RunDescription:
    """Return the description of a run in which some settings differ from the defaults."""
    of_extractor = {name: value for name, value in chosen.items() if name in EXTRACTOR}
    rest = {name: value for name, value in chosen.items() if name not in EXTRACTOR}
    extractor = replace(PLAIN.extractor, **of_extractor)
    return open_job(replace(PLAIN, extractor=extractor, **rest)).describe()


def effective(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, with one value for equivalent values."""
    same = dict(chosen)
    same["max_length"] = chosen["max_length"] or 32_768
    same["layers"] = chosen["layers"] or tuple(range(24))
    if chosen["samples_per_shard"] != "auto":
        same["workers"] = 1
    if chosen["augment"] == 1:
        same |= {"augment_seed": 0, "augment_keep_background": False}
    return same


def is_possible(chosen: dict[str, Any]) -> bool:
    """Return True if the job accepts these settings together."""
    windows = chosen["context_size"] is not None
    if (windows and chosen["overlength"] == "truncate") or (
        chosen["context_overlap"] and not windows
    ):
        return False
    return chosen["pooling"] != "last" or chosen["tokens"] == "all"


def test_every_setting_is_known_to_decide_or_not():
    """A new flag belongs in one of the two lists; a flag that determines bytes is in `run.json`."""
    known = {field.name for field in fields(Config)} - {"extractor"} | EXTRACTOR
    assert known == DECIDE.keys() | DO_NOT_DECIDE


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in DECIDE.items()}),
    st.dictionaries(st.sampled_from(sorted(DECIDE)), st.integers(0, 3), max_size=3),
)
def test_just_the_settings_that_differ_are_named(first: dict[str, Any], changes: dict[str, int]):
    second = first | {
        name: DECIDE[name][index % len(DECIDE[name])] for name, index in changes.items()
    }
    assume(is_possible(first) and is_possible(second))
    there, now = (configuration(described(**chosen)) for chosen in (first, second))
    named = {line.partition(" is ")[0] for line in differences(there, now)}
    one, other = effective(first), effective(second)
    changed = {name for name in one if one[name] != other[name]}
    for name in changed:
        expected = "augmentation" if name.startswith("augment") else FIELD.get(name, name)
        assert any(expected in each for each in named), (name, named)
    assert bool(named) == bool(changed)
