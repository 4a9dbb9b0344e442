from pathlib import Path

import numpy as np
import pytest

from activation_dataset.format import is_partial_file, manifest_file, shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.tfrecord import read_records
from tests.transforms.shards import KIND, PROMPTS, blocks_of, write_blocks
from transforms.output_folder import CLAIM_FILE, ClaimLostError, OutputFolder
from transforms.storage import OutputError, list_files
from transforms.write_layer import _WriteLayer


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    return OutputFolder.claim(str(tmp_path))


def files(folder: OutputFolder) -> set[str]:
    return {*list_files(folder.path)} - {CLAIM_FILE}


def test_each_shard_becomes_a_file_after_its_manifest(folder: OutputFolder, tmp_path: Path):
    manifests = write_blocks(
        folder, 10, [*blocks_of(10, 1, sizes=[1, 3]), *blocks_of(10, 0, sizes=[2, 2])]
    )
    assert [manifest.shard for manifest in manifests] == [1, 0]
    assert files(folder) == {
        name for shard in (0, 1) for name in (shard_file(10, shard, 2), manifest_file(10, shard, 2))
    }
    for manifest in manifests:
        described = tmp_path / manifest_file(10, manifest.shard, 2)
        assert LayerManifest.from_bytes(described.read_bytes()) == manifest
        path = tmp_path / manifest.file.path
        assert described.stat().st_mtime_ns <= path.stat().st_mtime_ns
        with path.open("rb") as stream:
            assert len(list(read_records(stream, path.name))) == len(PROMPTS)


def test_the_bytes_and_counts_do_not_depend_on_the_blocks(folder: OutputFolder, tmp_path: Path):
    (one,) = write_blocks(folder, 10, blocks_of(10, 0))
    content = (tmp_path / one.file.path).read_bytes()
    (many,) = write_blocks(folder, 10, blocks_of(10, 0, sizes=[1, 1, 2]))
    assert (tmp_path / one.file.path).read_bytes() == content
    assert (one.file, one.order, one.tokens) == (many.file, many.order, many.tokens)
    np.testing.assert_allclose(one.statistics.mean, many.statistics.mean)
    assert one.statistics.count == many.statistics.count == len(PROMPTS)


def test_a_shard_that_ends_too_early_is_an_error_and_leaves_nothing(folder: OutputFolder):
    with pytest.raises(RuntimeError, match="layer 10: shard 1 ended before its last block"):
        write_blocks(folder, 10, blocks_of(10, 1, sizes=[2, 2])[:-1])
    assert files(folder) == set()


def test_shards_that_are_mixed_are_an_error_and_leave_nothing(folder: OutputFolder):
    mixed = [blocks_of(10, 0, sizes=[2, 2])[0], blocks_of(10, 1)[0]]
    with pytest.raises(RuntimeError, match=r"shard 1 came before shard 0 .* in one stage"):
        write_blocks(folder, 10, mixed)
    assert files(folder) == set()


def test_an_attempt_that_failed_does_not_leak_into_the_next(folder: OutputFolder):
    do_fn = _WriteLayer(folder, 10, KIND)
    do_fn.start_bundle()
    first, last = blocks_of(10, 0, sizes=[2, 2])
    assert list(do_fn.process(first)) == []
    assert all(map(is_partial_file, files(folder)))
    do_fn.start_bundle()
    (manifest,) = (m for block in (first, last) for m in do_fn.process(block))
    assert manifest.samples == len(PROMPTS)
    assert files(folder) == {manifest.file.path, manifest_file(10, 0, 2)}


def test_a_folder_that_cannot_be_written_is_named(folder: OutputFolder, tmp_path: Path):
    (tmp_path / "layer_10").write_bytes(b"in the way")
    with pytest.raises(OutputError, match=r"layer_10/activations-00000-of-00002\.tfrecord: cannot"):
        write_blocks(folder, 10, blocks_of(10, 0))


def test_a_run_whose_folder_another_one_claims_writes_no_more(folder: OutputFolder):
    do_fn = _WriteLayer(folder, 10, KIND)
    do_fn.start_bundle()
    first, last = blocks_of(10, 0, sizes=[2, 2])
    list(do_fn.process(first))
    other = OutputFolder.claim(folder.path)
    with pytest.raises(ClaimLostError, match="another run was started into it"):
        list(do_fn.process(last))
    do_fn.teardown()
    assert files(folder) == set()
    other.check()
