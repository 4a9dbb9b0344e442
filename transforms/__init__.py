"""Beam transforms from task files to a dataset of activations, for use in other pipelines.

`examples/own_pipeline.py` shows them together. Importing them starts neither JAX nor transformers.
`transforms.model_handler` serves Beam's `RunInference`, whose module imports torch.
"""

from transforms.assign_shards import AssignShards, PlanShards
from transforms.combine_metadata import CombineMetadata
from transforms.commit_run import CommitRun, Limits
from transforms.extract_activations import ExtractActivations, LayerBlock, ShardPrompts
from transforms.find_inputs import resolve_patterns
from transforms.output_folder import OutputFolder
from transforms.read_tasks import REJECTED, ReadTasks
from transforms.report_inputs import GatherReport, InputReport
from transforms.tokenize_tasks import SampleRules, TokenizeTasks
from transforms.write_layer import WriteLayer
from transforms.write_prompts import WritePrompts

__all__ = [
    "REJECTED",
    "AssignShards",
    "CombineMetadata",
    "CommitRun",
    "ExtractActivations",
    "GatherReport",
    "InputReport",
    "LayerBlock",
    "Limits",
    "OutputFolder",
    "PlanShards",
    "ReadTasks",
    "SampleRules",
    "ShardPrompts",
    "TokenizeTasks",
    "WriteLayer",
    "WritePrompts",
    "resolve_patterns",
]
