from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from activation_dataset.format import is_partial_file, shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.record import RecordKind
from activation_dataset.verifying.layer_file import ExpectedRecords, verify_file
from tests.activation_dataset.synthetic import make_rows, make_samples
from transforms.extract_activations import LayerBlock
from transforms.output_folder import CLAIM_FILE, ClaimLostError, OutputFolder
from transforms.whole_file import OutputError
from transforms.write_layer import _WriteLayer

HIDDEN = 4
SAMPLES = make_samples([3, 4, 5, 6], "last")
ROWS = make_rows(SAMPLES, "last", HIDDEN, seed=0)


def blocks(shard: int, sizes: list[int]) -> list[LayerBlock]:
    """The samples of a shard, cut into blocks of these sizes."""
    cuts = np.cumsum([0, *sizes])
    return [
        LayerBlock(
            shard, 2, 10, tuple(SAMPLES[a:b]), ROWS[a:b], (1,) * (b - a), is_last=b == sum(sizes)
        )
        for a, b in pairwise(cuts)
    ]


def writer(folder: Path) -> _WriteLayer:
    return _WriteLayer(OutputFolder.claim(str(folder)), 10, HIDDEN, "last", "float32")


def write(folder: Path, *given: LayerBlock) -> list[LayerManifest]:
    """What a runner does with a bundle."""
    do_fn = writer(folder)
    do_fn.start_bundle()
    manifests = [manifest for block in given for manifest in do_fn.process(block)]
    do_fn.finish_bundle()
    do_fn.teardown()
    return manifests


def files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CLAIM_FILE
    )


def test_each_shard_becomes_a_file_that_verifies(tmp_path: Path):
    manifests = write(tmp_path, *blocks(1, [1, 3]), *blocks(0, [2, 2]))
    assert [manifest.shard for manifest in manifests] == [1, 0]
    assert files(tmp_path) == [shard_file(10, 0, 2), shard_file(10, 1, 2)]
    expected = ExpectedRecords(RecordKind("last", "float32", HIDDEN), SAMPLES)
    for manifest in manifests:
        with open(tmp_path / manifest.file.path, "rb") as stream:
            assert verify_file(stream, 10, manifest.shard, 2, expected) == manifest


def test_the_bytes_do_not_depend_on_the_blocks(tmp_path: Path):
    (one,) = write(tmp_path / "one", *blocks(0, [4]))
    (many,) = write(tmp_path / "many", *blocks(0, [1, 1, 2]))
    assert one == many
    path = shard_file(10, 0, 2)
    assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "many" / path).read_bytes()


def test_a_shard_that_ends_too_early_is_an_error_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError, match="layer 10: shard 1 ended before its last block"):
        write(tmp_path, *blocks(1, [2, 2])[:-1])
    assert files(tmp_path) == []


def test_shards_that_are_mixed_are_an_error_and_leave_nothing(tmp_path: Path):
    do_fn = writer(tmp_path)
    do_fn.start_bundle()
    assert list(do_fn.process(blocks(0, [2, 2])[0])) == []
    with pytest.raises(RuntimeError, match="a block of shard 1 came before shard 0 was complete"):
        list(do_fn.process(blocks(1, [2, 2])[0]))
    do_fn.teardown()
    assert files(tmp_path) == []


def test_an_attempt_that_failed_does_not_leak_into_the_next(tmp_path: Path):
    do_fn = writer(tmp_path)
    do_fn.start_bundle()
    list(do_fn.process(blocks(0, [2, 2])[0]))
    do_fn.start_bundle()
    (manifest,) = (m for block in blocks(0, [2, 2]) for m in do_fn.process(block))
    assert manifest.samples == 4
    assert files(tmp_path) == [manifest.file.path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "layer_10").write_bytes(b"in the way")
    with pytest.raises(OutputError, match=r"layer_10/activations-00000-of-00002\.tfrecord: cannot"):
        write(tmp_path, *blocks(0, [4]))


def test_nothing_but_whole_files_has_a_name(tmp_path: Path):
    do_fn = writer(tmp_path)
    do_fn.start_bundle()
    for block in blocks(0, [1, 1, 2])[:-1]:
        list(do_fn.process(block))
        assert all(is_partial_file(name) for name in files(tmp_path))
    do_fn.teardown()


def test_a_run_whose_folder_another_one_claims_writes_no_more(tmp_path: Path):
    do_fn = writer(tmp_path)
    do_fn.start_bundle()
    first, last = blocks(0, [2, 2])
    list(do_fn.process(first))
    other = OutputFolder.claim(str(tmp_path))
    with pytest.raises(ClaimLostError, match="another run was started into it"):
        list(do_fn.process(last))
    do_fn.teardown()
    assert files(tmp_path) == []
    other.check()
