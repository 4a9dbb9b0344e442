"""A worker that holds several bundles at once: one model, and the bytes of a single thread."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from qwen import extractor
from qwen.extractor import ActivationExtractor, open_extractor
from qwen.settings import ExtractorSettings
from tests.end_to_end.job import digests, run

FLAGS = ("--layers_to_extract", "0-1", "--batch_size", "1", "--samples_per_shard", "1")


def test_threads_share_one_model(
    checkpoint: Path, short_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(checkpoint, short_tasks, tmp_path / "alone", *FLAGS)
    opened = []

    def counted(settings: ExtractorSettings, lengths: Sequence[int]) -> ActivationExtractor:
        opened.append(settings)
        return open_extractor(settings, lengths)

    monkeypatch.setattr(extractor, "open_extractor", counted)
    threads = ("--direct_num_workers", "4", "--direct_running_mode", "multi_threading")
    run(checkpoint, short_tasks, tmp_path / "together", *FLAGS, *threads)
    assert len(opened) == 1
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")
