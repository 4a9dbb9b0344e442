"""A small run of `reliability.damage`."""

from pathlib import Path

import pytest

from reliability.damage import cut_files, flip_bits, places_of, reported
from tests.activation_dataset.synthetic import write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path, [[3, 40, 1], [7, 2]], "none", "bfloat16")
    return tmp_path


def test_every_kind_of_place_is_tried(dataset: Path):
    assert len(places_of(dataset)) == 9


def test_flipped_bits_are_reported_and_not_read(dataset: Path):
    caught = flip_bits(dataset, flips=180, seed=3)
    assert min(caught.values()) == 20
    assert reported(dataset) == []


def test_cut_files_are_reported_and_not_read(dataset: Path):
    assert cut_files(dataset, cuts=60, seed=3) == 60
    assert reported(dataset) == []
