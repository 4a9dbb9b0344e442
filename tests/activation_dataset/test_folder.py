import os

import numpy as np
import pytest

from activation_dataset.folder import Folder, LocalFolder, open_folder

CONTENT = bytes(range(256))


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    (tmp_path / "layer_3").mkdir()
    (tmp_path / "layer_3/file").write_bytes(CONTENT)
    (tmp_path / "metadata.json").write_bytes(b"{}")
    if request.param == "remote":
        pytest.importorskip("fsspec")
        return open_folder(f"file://{tmp_path}")
    return open_folder(tmp_path)


def test_what_is_below_it_is_listed(folder: Folder):
    assert sorted(folder.files()) == ["layer_3/file", "metadata.json"]


def test_bytes_are_read_anywhere_into_several_arrays(folder: Folder):
    source = folder.source("layer_3/file")
    views = [np.empty(size, np.uint8) for size in (3, 0, 5)]
    assert source.read(100, views)
    assert b"".join(view.tobytes() for view in views) == CONTENT[100:108]
    assert source.read(256, [np.empty(0, np.uint8)])
    source.close()


@pytest.mark.parametrize("offset", [250, 256, 300])
def test_too_few_bytes_are_noticed(folder: Folder, offset):
    source = folder.source("layer_3/file")
    assert not source.read(offset, [np.empty(4, np.uint8), np.empty(4, np.uint8)])
    source.close()


def test_a_read_that_returns_less_is_continued(folder: Folder, monkeypatch):
    read = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, views, offset: read(file, [views[0][:2]], offset)
    )
    source = folder.source("layer_3/file")
    views = [np.empty(size, np.uint8) for size in (3, 4, 1)]
    assert source.read(7, views)
    assert b"".join(view.tobytes() for view in views) == CONTENT[7:15]
    source.close()


def test_a_file_is_loaded_and_saved_whole(folder: Folder):
    assert folder.load("layer_3/file").tobytes() == CONTENT
    folder.save("layer_3/new", b"new")
    assert folder.load("layer_3/new").tobytes() == b"new"
    folder.save("layer_3/new", b"")
    assert len(folder.load("layer_3/new")) == 0
    assert sorted(folder.files()) == ["layer_3/file", "layer_3/new", "metadata.json"]


def test_what_is_not_there(folder: Folder):
    for call in (folder.open, folder.load):
        with pytest.raises(FileNotFoundError):
            call("layer_3/other")


def test_a_failed_save_leaves_nothing(tmp_path):
    (tmp_path / "index/file").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        LocalFolder(tmp_path).save("index/file", b"data")
    assert list(LocalFolder(tmp_path).files()) == []


def test_a_url_of_an_unknown_kind_says_what_to_install():
    with pytest.raises(ImportError, match=r"nope://x: reading a URL needs fsspec and its driver"):
        open_folder("nope://x")
