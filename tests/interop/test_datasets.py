"""Test that the job reads the same rows from saved Hugging Face datasets as the library."""

from pathlib import Path

import pytest

from corpus.task import Document
from transforms.find_inputs import match_files, resolve_patterns
from transforms.read_tasks import read_file

datasets = pytest.importorskip("datasets")


def test_the_rows_are_those_that_datasets_loads(tmp_path: Path):
    """The folder also has files of an earlier save with more shards, and the cache of a map."""
    folder = tmp_path / "saved"
    whole = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(20)]})
    whole.save_to_disk(folder / "train", num_shards=3)
    chosen = whole.shuffle(seed=0).select(range(9))
    datasets.DatasetDict(train=chosen, test=whole.select([3])).save_to_disk(folder)
    datasets.load_from_disk(folder / "train").map(lambda row: {"text": row["text"] + "!"})
    (pattern,) = resolve_patterns([str(folder)])
    found = match_files(pattern)
    skipped = [Path(path).name for path in found.skipped]
    assert any(name.startswith("cache-") for name in skipped)
    assert sum(name.startswith("data-") for name in skipped) == 3
    loaded = datasets.load_from_disk(folder)
    for split in ("train", "test"):
        paths = [path for path in found.files if Path(path).parent.name == split]
        items = [item for path in paths for item in read_file(path, path)]
        texts = [item.text for item in items if isinstance(item, Document)]
        assert texts == loaded[split]["text"][:]
