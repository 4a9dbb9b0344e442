"""A worker that holds several bundles at once: one model, and the bytes of a single thread."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from qwen.extractor import ActivationExtractor
from tests.end_to_end.job import digests, run
from transforms.extract_activations import ExtractorSettings

FLAGS = (
    *("--layers_to_extract", "0-1"),
    *("--batch_size", "1"),
    *("--samples_per_shard", "1"),
)


def test_threads_share_one_model(
    checkpoint: Path, short_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(checkpoint, short_tasks, tmp_path / "alone", *FLAGS)
    built = []
    build = ExtractorSettings.build

    def counted(
        self: ExtractorSettings, lengths_to_come: Sequence[int] = ()
    ) -> ActivationExtractor:
        built.append(self)
        return build(self, lengths_to_come)

    monkeypatch.setattr(ExtractorSettings, "build", counted)
    threads = ("--direct_num_workers", "4", "--direct_running_mode", "multi_threading")
    run(checkpoint, short_tasks, tmp_path / "together", *FLAGS, *threads)
    assert len(built) == 1
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")
