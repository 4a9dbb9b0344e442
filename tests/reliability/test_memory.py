"""Memory for reading, which the largest record bounds."""

from pathlib import Path

from reliability.memory import peak_of, read, write_documents, write_tasks


def test_a_larger_file_of_tasks_takes_no_more_memory(tmp_path: Path):
    """The files exceed the 16 MiB that the reader may hold to tell the kind of a file."""
    sizes = {}
    for megabytes in (20, 40):
        path = tmp_path / f"{megabytes}.json"
        write_tasks(path, megabytes)
        sizes[megabytes] = peak_of(read, path)
    assert sizes[40].items > 1.9 * sizes[20].items
    assert sizes[40].megabytes - sizes[20].megabytes < 10


def test_more_documents_take_no_more_memory_than_their_digests(tmp_path: Path):
    path = tmp_path / "documents.jsonl"
    write_documents(path, 1_000)
    few = peak_of(read, path)
    write_documents(path, 50_000)
    many = peak_of(read, path)
    assert many.items == 50_000
    assert many.megabytes - few.megabytes < 25
