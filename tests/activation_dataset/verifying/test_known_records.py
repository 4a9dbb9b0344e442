"""Reading layer files by the library against reading them as streams, which needs no library."""

import io
import os

import ml_dtypes
import numpy as np
import pytest

from activation_dataset import native
from activation_dataset.record import RecordKind
from activation_dataset.statistics_builder import BLOCK_ROWS, GROUP_BLOCKS, StatisticsBuilder
from activation_dataset.verifying import known_records
from activation_dataset.verifying.layer_file import (
    ExpectedRecords,
    LayerFileError,
    expected_records,
    verify_file,
)
from activation_dataset.writer import LayerFileWriter
from tests.activation_dataset.synthetic import make_samples

pytestmark = pytest.mark.skipif(native.library is None, reason="the library is not built here")

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
GROUP_ROWS = BLOCK_ROWS * GROUP_BLOCKS


def write(file, kind, lengths, spoilt=()):
    """Writes a layer file, some of whose vectors are not for float32; returns what it holds."""
    samples = make_samples(lengths, kind.pooling)
    counts = [kind.vectors(sample) for sample in samples]
    rows = np.random.default_rng(0).normal(2, 1, (sum(counts), kind.hidden)).astype(np.float32)
    for row, value in spoilt:
        rows[row, row % kind.hidden] = value
    with file.open("wb") as stream:
        writer = LayerFileWriter(stream, 5, kind.pooling, kind.storage_dtype, kind.hidden)
        writer.append(samples, rows.astype(DTYPES[kind.storage_dtype]), counts)
        manifest = writer.finish(0, 1)
    return samples, manifest


def verify(file, samples, kind, by_library):
    expected = ExpectedRecords(kind, samples)
    with file.open("rb") if by_library else io.BytesIO(file.read_bytes()) as stream:
        assert (known_records.descriptor_of(stream) is not None) == by_library
        return verify_file(stream, 5, 0, 1, expected)


def problems(file, samples, kind, by_library):
    with pytest.raises(LayerFileError) as error:
        verify(file, samples, kind, by_library)
    return error.value.problems


SPOILT = [
    (),
    [(0, np.nan)],
    [(BLOCK_ROWS - 1, np.inf), (BLOCK_ROWS, 1e25), (GROUP_ROWS - 1, np.nan)],
    [(GROUP_ROWS + 3 * BLOCK_ROWS - 1, 1e30)],
]


@pytest.mark.parametrize("piece_bytes", [16, 1000, 1 << 17])
@pytest.mark.parametrize("spoilt", SPOILT, ids=["sound", "first", "several", "last"])
@pytest.mark.parametrize("storage_dtype", DTYPES)
@pytest.mark.parametrize(
    "lengths", [[1], [300, 1, 5000, 127, 128], [700] * 4, [GROUP_ROWS, BLOCK_ROWS * 3]]
)
def test_every_token_is_read_as_it_was_written(
    tmp_path, monkeypatch, lengths, storage_dtype, spoilt, piece_bytes
):
    monkeypatch.setattr(known_records, "_PIECE_BYTES", piece_bytes)
    kind = RecordKind("none", storage_dtype, 9)
    spoilt = [(row, value) for row, value in spoilt if row < sum(lengths)]
    samples, manifest = write(tmp_path / "file", kind, lengths, spoilt)
    assert verify(tmp_path / "file", samples, kind, by_library=True) == manifest
    assert verify(tmp_path / "file", samples, kind, by_library=False) == manifest


@pytest.mark.parametrize("piece_bytes", [7, 1 << 17])
@pytest.mark.parametrize("storage_dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, BLOCK_ROWS, GROUP_ROWS + BLOCK_ROWS, 3 * GROUP_ROWS + 5])
def test_pooled_samples_are_read_as_they_were_written(
    tmp_path, monkeypatch, count, storage_dtype, piece_bytes
):
    monkeypatch.setattr(known_records, "_PIECE_BYTES", piece_bytes)
    kind = RecordKind("last", storage_dtype, 16)
    samples, manifest = write(tmp_path / "file", kind, [1 + n % 200 for n in range(count)])
    with (tmp_path / "file").open("rb") as stream:
        known_by_reading = expected_records(stream, "file", kind)
        assert verify_file(stream, 5, 0, 1, known_by_reading) == manifest
    assert verify(tmp_path / "file", samples, kind, by_library=True) == manifest


@pytest.mark.parametrize("piece_bytes", [50, 1 << 17])
@pytest.mark.parametrize("pooling", ["last", "none"])
def test_each_damage_is_found(tmp_path, monkeypatch, pooling, piece_bytes):
    monkeypatch.setattr(known_records, "_PIECE_BYTES", piece_bytes)
    kind = RecordKind(pooling, "bfloat16", 4)
    file = tmp_path / "file"
    samples, _ = write(file, kind, [3, 20])
    content = file.read_bytes()
    damaged = [content[:length] for length in range(len(content))]
    damaged += [content + b"\0", content * 2]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for wrong in damaged:
        file.write_bytes(wrong)
        found = problems(file, samples, kind, by_library=True)
        assert found == problems(file, samples, kind, by_library=False)


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path):
    kind = RecordKind("last", "float32", 4)
    samples, _ = write(tmp_path / "file", kind, [3])
    written = os.open(tmp_path / "written", os.O_WRONLY | os.O_CREAT)
    groups = ExpectedRecords(kind, samples).groups
    with pytest.raises(OSError, match="Bad file descriptor"):
        known_records.read_known_records(written, groups, False, StatisticsBuilder(4))
    os.close(written)
