from pathlib import Path

import pytest

from activation_dataset.format import Pooling, Sample, StorageDtype, shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.record import RecordKind
from activation_dataset.writer import LayerFileWriter
from tests.activation_dataset.synthetic import make_rows, make_samples, row_counts
from transforms.resume import FinishedLayers, finished_layers

LAYERS = (10, 11, 12)
HIDDEN = 4
SAMPLES = make_samples([3, 4, 5], "last")


def write(
    folder: Path,
    layer: int,
    samples: list[Sample] = SAMPLES,
    pooling: Pooling = "last",
    dtype: StorageDtype = "float32",
) -> LayerManifest:
    path = folder / shard_file(layer, 1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        writer = LayerFileWriter(stream, layer, pooling, dtype, HIDDEN)
        rows = make_rows(samples, pooling, HIDDEN, seed=layer)
        writer.append(samples, rows, row_counts(samples, pooling))
    return writer.finish(1, 2)


def finished(folder: Path, samples: list[Sample] = SAMPLES) -> FinishedLayers:
    kind = RecordKind("last", "float32", HIDDEN)
    return finished_layers(str(folder), 1, 2, LAYERS, samples, kind)


def test_an_empty_folder_has_nothing_finished(tmp_path: Path):
    assert finished(tmp_path) == FinishedLayers((), {})


def test_what_was_written_is_found_again_as_it_was(tmp_path: Path):
    written = {layer: write(tmp_path, layer) for layer in (10, 12)}
    found = finished(tmp_path)
    assert found.manifests == written
    assert found.order == tuple(sample.sample_id for sample in SAMPLES)


def test_the_samples_may_be_given_in_any_order(tmp_path: Path):
    write(tmp_path, 10)
    found = finished(tmp_path, SAMPLES[::-1])
    assert found.order == tuple(sample.sample_id for sample in SAMPLES)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() * 2),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: flip(path, 0),
        lambda path: flip(path, path.stat().st_size // 2),
        lambda path: flip(path, -1),
    ],
    ids=["empty", "cut", "doubled", "zeros", "first bit", "middle bit", "last bit"],
)
@pytest.mark.parametrize("layer", [10, 11])
def test_a_damaged_file_is_not_trusted(tmp_path: Path, damage, layer: int):
    for each in LAYERS:
        write(tmp_path, each)
    damage(tmp_path / shard_file(layer, 1, 2))
    found = finished(tmp_path)
    assert set(found.manifests) == {*LAYERS} - {layer}
    assert len(found.order) == len(SAMPLES)


@pytest.mark.parametrize(
    "other",
    [SAMPLES[:2], make_samples([3, 4, 5], "last", seed=1), [SAMPLES[0], SAMPLES[0], SAMPLES[1]]],
    ids=["fewer", "others", "one twice"],
)
def test_a_file_of_other_samples_is_not_trusted(tmp_path: Path, other: list[Sample]):
    write(tmp_path, 10, other)
    assert finished(tmp_path).manifests == {}


def test_layers_in_different_orders_are_not_mixed(tmp_path: Path):
    write(tmp_path, 10)
    write(tmp_path, 11, SAMPLES[::-1])
    assert set(finished(tmp_path).manifests) == {10}


def test_a_file_of_another_kind_is_not_trusted(tmp_path: Path):
    write(tmp_path, 10, dtype="bfloat16")
    write(tmp_path, 11, make_samples([3, 4, 5], "none"), pooling="none")
    assert finished(tmp_path).manifests == {}
