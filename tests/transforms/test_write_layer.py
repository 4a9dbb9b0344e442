import errno
from pathlib import Path

import pytest

from activation_dataset.format import is_partial_file, manifest_file, shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.tfrecord import read_records
from tests.transforms.shards import KIND, PROMPTS, blocks_of, write_blocks
from transforms.claim import CLAIM_FILE
from transforms.output_folder import OutputFolder
from transforms.storage import OutputError, list_files
from transforms.whole_file import WholeFile
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


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (blocks_of(10, 1, sizes=[2, 2])[:-1], "layer 10: shard 1 ended before its last block"),
        ([blocks_of(10, 0, sizes=[2, 2])[0], *blocks_of(10, 1)], "shard 1 came before shard 0"),
    ],
    ids=["too early", "mixed"],
)
def test_a_shard_that_is_not_whole_leaves_nothing(folder: OutputFolder, blocks, message: str):
    with pytest.raises(RuntimeError, match=message):
        write_blocks(folder, 10, blocks)
    assert files(folder) == set()


def test_an_attempt_that_failed_does_not_leak_into_the_next(folder: OutputFolder):
    do_fn = _WriteLayer(folder, 10, KIND)
    do_fn.start_bundle()
    first, last = blocks_of(10, 0, sizes=[2, 2])
    do_fn.process(first)
    assert all(map(is_partial_file, files(folder)))
    do_fn.start_bundle()
    for block in (first, last):
        do_fn.process(block)
    (manifest,) = (output.value for output in do_fn.finish_bundle())
    assert manifest.samples == len(PROMPTS)
    assert files(folder) == {manifest.file.path, manifest_file(10, 0, 2)}


def test_a_failed_write_is_reported_before_the_bundle_ends(
    folder: OutputFolder, monkeypatch: pytest.MonkeyPatch
):
    """If the disk fails in the background, the file gets no name and no manifest."""

    def full(file: WholeFile) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WholeFile, "start_writeback", full)
    with pytest.raises(OutputError, match=r"layer_10/.*No space left on device"):
        write_blocks(folder, 10, blocks_of(10, 1, sizes=[1, 1, 2]))
    assert files(folder) == set()
