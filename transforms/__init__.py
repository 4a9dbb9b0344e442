"""Beam transforms from files of tasks to a dataset of activations, for pipelines of your own.

`examples/own_pipeline.py` shows them together. A name is imported when it is first used, so that
`import transforms` alone costs nothing.
"""
# ruff: noqa: F401 - `__all__` has these names.

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.assign_shards import AssignShards, PlanShards
    from transforms.combine_metadata import CombineMetadata
    from transforms.commit_run import CommitRun, Limits
    from transforms.extract_activations import ExtractActivations, LayerBlock, ShardPrompts
    from transforms.model_handler import ActivationModelHandler
    from transforms.output_folder import OutputFolder
    from transforms.read_tasks import ReadTasks, resolve_patterns
    from transforms.tokenize_tasks import LengthLimit, TokenizeTasks
    from transforms.write_layer import WriteLayer
    from transforms.write_prompts import WritePrompts

_NAMES = {
    "assign_shards": ("AssignShards", "PlanShards"),
    "combine_metadata": ("CombineMetadata",),
    "commit_run": ("CommitRun", "Limits"),
    "extract_activations": ("ExtractActivations", "LayerBlock", "ShardPrompts"),
    "model_handler": ("ActivationModelHandler",),
    "output_folder": ("OutputFolder",),
    "read_tasks": ("ReadTasks", "resolve_patterns"),
    "tokenize_tasks": ("LengthLimit", "TokenizeTasks"),
    "write_layer": ("WriteLayer",),
    "write_prompts": ("WritePrompts",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
