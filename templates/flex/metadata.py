"""Generate the template's metadata.json from the flags of the job.

Usage::

    python templates/flex/metadata.py > templates/flex/metadata.json
"""

import argparse
import json
import re
from typing import Any

from activation_dataset.sites import HOOK_POINTS
from beam_pipeline.flags import build_parser

REQUIRED = {"model_path", "tasks_file", "output_dir", "accelerator", "sdk_container_image"}

INTERNAL = {"help", "gcs_bucket", "no_progress", "upload_to_cloud"}
"""Flags without a parameter: they need a terminal, or --output_dir replaces them."""

HOOK_POINT = f"({'|'.join(HOOK_POINTS)})"

PATTERNS = {
    "augment": r"^[1-9][0-9]*$",
    "augment_seed": r"^[0-9]+$",
    "batch_size": r"^[1-9][0-9]*$",
    "hook_points": rf"^{HOOK_POINT}([ ,]+{HOOK_POINT})*$",
    "layers_to_extract": r"^(all|[0-9]+(-[0-9]+)?([ ,]+[0-9]+(-[0-9]+)?)*)$",
    "max_length": r"^[1-9][0-9]*$",
    "max_output_bytes": r"^[1-9][0-9]*([kMGTP]B)?$",
    "max_rejected": r"^[0-9]+$",
    "mesh_shape": r"^[1-9][0-9]*,[1-9][0-9]*$",
    "output_dir": r"^gs://[^/]+/.+$",
    "samples_per_shard": r"^(auto|[1-9][0-9]*)$",
    "tasks_file": r"^gs://[^/]+/.+$",
    "upload_memory": r"^[1-9][0-9]*([kMGTP]B)?$",
}
TYPES = {
    "output_dir": "GCS_WRITE_FOLDER",
    "samples_per_shard": "TEXT",
    "upload_memory": "TEXT",
}

IMAGE = {
    "name": "sdk_container_image",
    "label": "Worker image",
    "helpText": "The image that this template was built with; workers run it too.",
    "isOptional": False,
    "regexes": [r"^[^ ]+/[^ ]+(:|@)[^ ]+$"],
    "paramType": "TEXT",
    "groupName": "Dataflow workers",
}


def template_metadata(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the fields of a `google.dataflow.v1beta3.TemplateMetadata`."""
    parameters = [
        _parameter(action, str(group.title))
        for group in parser._action_groups
        for action in group._group_actions
        if action.dest not in INTERNAL
    ]
    return {
        "name": "Activations of Qwen models",
        "description": parser.description,
        "parameters": [*parameters, IMAGE],
    }


def _parameter(action: argparse.Action, group: str) -> dict[str, Any]:
    name = action.dest
    parameter: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": _sentence(action.help or ""),
        "isOptional": name not in REQUIRED,
        "paramType": TYPES.get(name, "TEXT"),
        "groupName": group.capitalize() if group.islower() else group,
    }
    if action.choices:
        parameter["paramType"] = "ENUM"
        parameter["enumOptions"] = [{"value": choice, "label": choice} for choice in action.choices]
    elif isinstance(action.default, bool):
        parameter["paramType"] = "BOOLEAN"
    elif isinstance(action.default, int) and name not in TYPES:
        parameter["paramType"] = "NUMBER"
    if name in PATTERNS:
        parameter["regexes"] = [PATTERNS[name]]
    if action.default is not None:
        default = action.default
        parameter["defaultValue"] = (
            str(default).lower() if isinstance(default, bool) else str(default)
        )
    return parameter


def _sentence(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text[:1].upper() + text[1:].rstrip(".") + "."


if __name__ == "__main__":
    print(json.dumps(template_metadata(build_parser()), indent=2))
