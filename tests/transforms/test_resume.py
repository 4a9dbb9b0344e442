import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from activation_dataset.format import manifest_file, prompts_file, shard_file
from activation_dataset.manifest import Manifest
from activation_dataset.prompts import Prompt
from activation_dataset.sites import Site
from tests.end_to_end.emulator import BUCKET, address, bucket
from tests.transforms.shards import PROMPTS, blocks_of, write_blocks
from transforms.extract_activations import ShardPrompts
from transforms.output_folder import OutputFolder, list_output
from transforms.resume import Finished, finished_files, in_order, ops_of_files
from transforms.storage import delete, join, read_if_exists
from transforms.whole_file import write_whole
from transforms.write_prompts import write_shard_prompts

__all__ = ["address", "bucket"]

SITES: tuple[Site, ...] = (10, 11)


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    if request.param == "local":
        return OutputFolder.claim(str(tmp_path))
    request.getfixturevalue("bucket")
    return OutputFolder.claim(f"gs://{BUCKET}/out")


def write(folder: OutputFolder, prompts: Sequence[Prompt] = PROMPTS) -> dict[Site | None, Manifest]:
    """Write all files of shard 1 of 2."""
    written: dict[Site | None, Manifest] = {}
    for site in SITES:
        (written[site],) = write_blocks(folder, site, blocks_of(site, 1, prompts))
    written[None] = write_shard_prompts(ShardPrompts(1, 2, tuple(prompts)), folder)
    return written


def finished(folder: OutputFolder) -> Finished:
    return finished_files(folder.path, 1, 2, SITES)


def test_files_are_found_again_by_their_manifests(folder: OutputFolder, caplog):
    assert finished(folder) == {}
    written = write(folder)
    assert finished(folder) == written
    assert finished_files(folder.path, 0, 2, SITES) == {}
    assert not caplog.records


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(shard_file(11, 1, 2), flipped), (manifest_file(None, 1, 2), lambda content: content[:-9])],
)
def test_a_damaged_file_is_written_again_and_named(
    folder: OutputFolder, caplog, name: str, damage: Callable[[bytes], bytes]
):
    write(folder)
    content = read_if_exists(join(folder.path, name))
    assert content is not None
    write_whole(join(folder.path, name), damage(content))
    damaged = None if "prompts" in name else 11
    assert set(finished(folder)) == {10, 11, None} - {damaged}
    path = prompts_file(1, 2) if damaged is None else shard_file(11, 1, 2)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert join(folder.path, path) in caplog.text


def test_a_file_without_its_manifest_is_written_again_and_named(folder: OutputFolder, caplog):
    write(folder)
    delete(join(folder.path, manifest_file(10, 1, 2)))
    assert set(finished(folder)) == {11, None}
    assert f"{shard_file(10, 1, 2)} is written again: it has no manifest" in caplog.text
    # A run that ends between the two writes leaves a manifest without its file.
    delete(join(folder.path, shard_file(11, 1, 2)))
    assert set(finished(folder)) == {None}
    assert shard_file(11, 1, 2) not in caplog.text


def test_the_operations_of_existing_files_are_those_of_every_shard(folder: OutputFolder):
    def write_with(ops: str, shard: int) -> None:
        blocks = [replace(block, ops=ops) for block in blocks_of(10, shard)]
        write_blocks(folder, 10, blocks)

    assert ops_of_files(folder.path, list_output(folder.path)) == ()
    write_with("xla", 0)
    write_with("amx", 1)
    assert ops_of_files(folder.path, list_output(folder.path)) == ("amx", "xla")
    delete(join(folder.path, shard_file(10, 1, 2)))
    assert ops_of_files(folder.path, list_output(folder.path)) == ("xla",)
    write_whole(join(folder.path, manifest_file(10, 0, 2)), b"damaged")
    assert ops_of_files(folder.path, list_output(folder.path)) == ()


def test_files_in_another_order_are_written_again(folder: OutputFolder, caplog):
    backwards = write(folder, PROMPTS[::-1])
    (manifest,) = write_blocks(folder, 10, blocks_of(10, 1))
    found = finished(folder)
    assert set(found) == {10, 11, None}
    assert in_order(found, manifest.order) == {10: manifest}
    assert f"{shard_file(11, 1, 2)} is written again" in caplog.text
    assert in_order(found, "another") == {}
    assert set(in_order(found, backwards[11].order)) == {11, None}
