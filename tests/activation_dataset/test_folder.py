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


def test_files_below_a_folder_are_listed(folder: Folder):
    assert sorted(folder.files()) == ["layer_3/file", "metadata.json"]


@pytest.mark.parametrize(("start", "end"), [(100, 108), (250, 300), (256, 256), (300, 310)])
def test_a_range_is_read(folder: Folder, start: int, end: int):
    with folder.open_range("layer_3/file", start, end) as stream:
        assert stream.read(end - start) == CONTENT[start:end]


def test_a_file_is_saved_whole(folder: Folder):
    folder.save("layer_3/new", b"new")
    with folder.open("layer_3/new") as stream:
        assert stream.read() == b"new"
    assert sorted(folder.files()) == ["layer_3/file", "layer_3/new", "metadata.json"]


def test_a_missing_file(folder: Folder):
    with pytest.raises(FileNotFoundError):
        folder.open("layer_3/other")


def test_a_failed_save_leaves_nothing(tmp_path):
    (tmp_path / "index/file").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        LocalFolder(tmp_path).save("index/file", b"data")
    assert list(LocalFolder(tmp_path).files()) == []


def test_a_url_of_an_unknown_kind_says_what_to_install():
    with pytest.raises(ImportError, match=r"nope://x: .*fsspec"):
        open_folder("nope://x")
