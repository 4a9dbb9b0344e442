"""Beam transforms from files of tasks to a dataset of activations, for pipelines of your own.

`examples/own_pipeline.py` shows them together. A name is imported when it is first used, so that
`import transforms` alone costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.assign_shards import AssignShards, PlanShards
    from transforms.combine_metadata import CombineMetadata
    from transforms.commit_run import CommitRun, Limits
    from transforms.extract_activations import ExtractActivations
    from transforms.model_handler import ActivationModelHandler
    from transforms.output_folder import OutputFolder
    from transforms.read_tasks import ReadTasks, resolve_patterns
    from transforms.tokenize_tasks import LengthLimit, TokenizeTasks
    from transforms.write_layer import WriteLayer
    from transforms.write_prompts import WritePrompts

_MODULES = {
    "ActivationModelHandler": "model_handler",
    "AssignShards": "assign_shards",
    "CombineMetadata": "combine_metadata",
    "CommitRun": "commit_run",
    "ExtractActivations": "extract_activations",
    "LengthLimit": "tokenize_tasks",
    "Limits": "commit_run",
    "OutputFolder": "output_folder",
    "PlanShards": "assign_shards",
    "ReadTasks": "read_tasks",
    "TokenizeTasks": "tokenize_tasks",
    "WriteLayer": "write_layer",
    "WritePrompts": "write_prompts",
    "resolve_patterns": "read_tasks",
}

__all__ = [*_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
