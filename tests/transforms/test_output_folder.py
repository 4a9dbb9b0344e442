import shutil
from pathlib import Path

import pytest

from activation_dataset.format import manifest_file, partial_file, prompts_file, shard_file
from transforms.claim import CLAIM_FILE
from transforms.output_folder import (
    ClaimLostError,
    OutputFolder,
    list_output,
    remove_output,
    remove_partial_files,
)
from transforms.storage import list_files

OURS = (
    "metadata.json",
    partial_file("metadata.json", "0123456789abcdef"),
    "certificate.json",
    "errors/rejected.jsonl",
    shard_file(10, 0, 2),
    shard_file(3, 1, 7),
    "layer_3_mlp_out/activations-00000-of-00001.tfrecord",
    partial_file(shard_file(10, 1, 2), "0123456789abcdef"),
    prompts_file(0, 2),
    manifest_file(10, 0, 2),
    manifest_file(None, 1, 2),
    "run.json",
)
THEIRS = (
    *("notes.md", "layer_10/plot.png", "errors/mine.txt", "layer_x/a", "metadata.json.bak"),
    *("manifests/mine.json", partial_file("another/dataset/run.json", "0123456789abcdef")),
)


def names(folder: Path) -> set[str]:
    return {*list_files(str(folder))}


@pytest.fixture
def occupied(tmp_path: Path) -> Path:
    """Return a folder with every kind of output, and files that no run wrote."""
    for name in (*OURS, *THEIRS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_only_output_is_found_and_removed(occupied: Path):
    partial = {name for name in OURS if "partial" in name}
    found = list_output(str(occupied))
    assert found == {name: len(name) for name in OURS}
    assert [*found][:2] == [*OURS][:2], "the metadata is deleted first"
    assert [*found][-1] == "run.json"
    assert set(remove_partial_files(str(occupied))) == {*OURS} - partial
    assert names(occupied) == {*OURS, *THEIRS} - partial
    remove_output(str(occupied))
    assert names(occupied) == {*THEIRS}


def test_a_claim_holds_until_it_is_released(tmp_path: Path):
    folder = OutputFolder.claim(tmp_path / "new" / "folder")
    folder.write("run.json", b"{}")
    assert names(tmp_path / "new" / "folder") == {"run.json", CLAIM_FILE}
    folder.release()
    assert names(tmp_path / "new" / "folder") == {"run.json"}
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(ClaimLostError, match=r"no longer belongs to this run: .* it was removed"):
        folder.write("metadata.json", b"{}")
    assert names(tmp_path) == set(), "a removed folder is not recreated"


def test_the_last_claim_counts(tmp_path: Path):
    first = OutputFolder.claim(str(tmp_path))
    half = first.file(shard_file(10, 0, 1))
    half.stream.write(b"half")
    second = OutputFolder.claim(str(tmp_path))
    with pytest.raises(ClaimLostError, match="another run was started in it"):
        half.commit()
    with pytest.raises(ClaimLostError):
        first.write("metadata.json", b"{}")
    first.release()
    second.check()
    assert names(tmp_path) == {CLAIM_FILE}
