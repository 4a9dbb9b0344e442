import shutil
from pathlib import Path

import pytest

from activation_dataset.format import partial_file, prompts_file, shard_file
from transforms.output_folder import (
    CLAIM_FILE,
    ClaimLostError,
    OutputFolder,
    delete,
    list_output,
    remove_output,
    remove_partial_files,
)
from transforms.whole_file import OutputError


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def occupied(tmp_path: Path) -> Path:
    """A folder with every kind of output, and files that are someone else's."""
    ours = [
        "metadata.json",
        "run.json",
        "certificate.json",
        "errors/rejected.jsonl",
        shard_file(10, 0, 2),
        shard_file(3, 1, 7),
        partial_file(shard_file(10, 1, 2), "0123456789abcdef"),
        partial_file("metadata.json", "0123456789abcdef"),
    ]
    theirs = [
        *("notes.md", "layer_10/plot.png", "errors/mine.txt", "layer_x/a", "metadata.json.bak"),
        partial_file("another/dataset/run.json", "0123456789abcdef"),
    ]
    for name in [*ours, *theirs]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "ours").write_text("\n".join(sorted(ours)))
    return tmp_path


def test_only_what_a_run_writes_is_found_and_removed(occupied: Path):
    ours = (occupied / "ours").read_text().splitlines()
    found = list_output(str(occupied))
    assert found == {name: len(name) for name in ours}
    everything = names(occupied)
    remove_output(str(occupied))
    assert names(occupied) == everything - set(ours)
    remove_output(str(occupied))


def test_the_commit_goes_first_and_the_configuration_last(occupied: Path):
    first, second, *between, last = list_output(str(occupied))
    assert first == "metadata.json"
    assert second.startswith("metadata.json.partial-")
    assert any("layer_3/" in name for name in between)
    assert last == "run.json"


def test_partial_files_are_removed_and_no_others(occupied: Path):
    everything = names(occupied)
    remove_partial_files(str(occupied))
    gone = everything - names(occupied)
    assert len(gone) == 2
    assert all(".partial-" in name for name in gone)


def test_a_claim_holds_until_it_is_released(tmp_path: Path):
    folder = OutputFolder.claim(str(tmp_path / "new" / "folder"))
    folder.check()
    folder.write("run.json", b"{}")
    assert names(tmp_path / "new" / "folder") == {"run.json", CLAIM_FILE}
    folder.release()
    assert names(tmp_path / "new" / "folder") == {"run.json"}
    with pytest.raises(ClaimLostError, match="no longer this run's"):
        folder.check()
    folder.release()


def test_the_last_claim_counts(tmp_path: Path):
    first = OutputFolder.claim(str(tmp_path))
    half = first.file(shard_file(10, 0, 1))
    half.stream.write(b"half")
    second = OutputFolder.claim(str(tmp_path))
    with pytest.raises(ClaimLostError, match="another run was started into it"):
        half.commit()
    with pytest.raises(ClaimLostError):
        first.write("metadata.json", b"{}")
    first.release()
    second.check()
    assert names(tmp_path) == {CLAIM_FILE}


def test_a_folder_that_was_removed_is_not_made_again(tmp_path: Path):
    folder = OutputFolder.claim(str(tmp_path / "out"))
    half = folder.file(prompts_file(0, 1))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises((ClaimLostError, OutputError)):
        half.commit()
    with pytest.raises(ClaimLostError, match="or it was removed"):
        folder.write("metadata.json", b"{}")
    assert names(tmp_path) == set()


def test_deleting_what_is_gone_is_no_error(tmp_path: Path):
    delete(str(tmp_path / "nothing"))
