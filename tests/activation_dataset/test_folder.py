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


def content(folder: Folder, path: str) -> bytes:
    with folder.open(path) as stream:
        return stream.read()


def test_all_files_are_listed(folder: Folder):
    assert sorted(folder.files()) == ["layer_3/file", "metadata.json"]


@pytest.mark.parametrize(("start", "end"), [(0, 256), (100, 108), (250, 256), (7, 7)])
def test_a_range_of_bytes(folder: Folder, start, end):
    with folder.open_range("layer_3/file", start, end) as stream:
        assert stream.read(end - start) == CONTENT[start:end]


def test_a_range_past_the_end_is_shorter(folder: Folder):
    with folder.open_range("layer_3/file", 250, 300) as stream:
        assert stream.read(50) == CONTENT[250:]


def test_a_file_is_saved_whole(folder: Folder):
    for data in (b"new", b""):
        folder.save("layer_3/new", data)
        assert content(folder, "layer_3/new") == data
    assert sorted(folder.files()) == ["layer_3/file", "layer_3/new", "metadata.json"]


def test_a_missing_file(folder: Folder):
    with pytest.raises(FileNotFoundError):
        folder.open("layer_3/other")


def test_a_failed_save_leaves_nothing(tmp_path):
    (tmp_path / "index/file").mkdir(parents=True)
    with pytest.raises(OSError, match="file"):
        LocalFolder(tmp_path).save("index/file", b"data")
    assert list(LocalFolder(tmp_path).files()) == []


def test_an_unknown_url_says_what_to_install():
    with pytest.raises(ImportError, match=r"nope://x: reading a URL needs fsspec and its driver"):
        open_folder("nope://x")
