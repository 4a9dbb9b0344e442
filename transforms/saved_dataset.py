"""Datasets that Hugging Face's `save_to_disk` wrote: which files of their folders are data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from transforms.storage import TasksUnreadableError, exists, read_if_exists

DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json")
"""Files that describe a dataset; they hold no tasks."""


class SavedDatasetError(ValueError):
    """A saved dataset that is not what its state.json or dataset_dict.json says."""


def without_stale_files(paths: Sequence[str]) -> list[str]:
    """Return the paths without descriptions, caches of `.map`, and files of an earlier save.

    A folder with a state.json is the files that it lists; a folder with a dataset_dict.json has the
    splits that it lists. Nothing changes for other folders.

    Raises:
        SavedDatasetError: if a listed file is missing, or the files hold more than the dataset.
    """
    for path in paths:
        if os.path.basename(path) == "dataset_dict.json":
            _check_splits(path)
    tables = {os.path.dirname(path) for path in paths if path.lower().endswith(".arrow")}
    states = {os.path.dirname(path) for path in paths if os.path.basename(path) == "state.json"}
    listed = {folder: _listed(folder) for folder in sorted(tables | states)}
    kept = []
    for path in paths:
        folder, name = os.path.split(path)
        names = listed.get(folder)
        is_cache = name.startswith("cache-") and name.endswith(".arrow")
        if name not in DESCRIPTIONS and (not is_cache if names is None else name in names):
            kept.append(path)
    return kept


def _listed(folder: str) -> list[str] | None:
    """Return the names of a saved dataset's files; None if the folder is not a saved dataset."""
    path = f"{folder}/state.json"
    state = _read(path)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(entries, list):
        return None
    parent, split = os.path.split(folder)
    splits = _splits(f"{parent}/dataset_dict.json")
    if splits is not None and split not in splits:
        return []
    if any(key.startswith("_indices") and value for key, value in state.items()) or any(
        not isinstance(entry, dict) or set(entry) != {"filename"} for entry in entries
    ):
        raise SavedDatasetError(
            f"{path} selects rows of its files, as old versions of datasets saved; load it with "
            "datasets.load_from_disk, and save it again after flatten_indices()"
        )
    names = [str(entry["filename"]) for entry in entries]
    for name in names:
        if "/" in name or not exists(f"{folder}/{name}"):
            raise SavedDatasetError(
                f"{path} lists {name!r}, which is not in the folder; copy or save it again"
            )
    return names


def _check_splits(path: str) -> None:
    for split in _splits(path) or []:
        if not exists(f"{os.path.dirname(path)}/{split}/state.json"):
            raise SavedDatasetError(
                f"{path} lists the split {split!r}, which is not next to it; copy or save it again"
            )


def _splits(path: str) -> list[str] | None:
    content = _read(path)
    splits = content.get("splits") if isinstance(content, dict) else None
    return splits if isinstance(splits, list) else None


def _read(path: str) -> Any:
    content = read_if_exists(path, TasksUnreadableError)
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return None
