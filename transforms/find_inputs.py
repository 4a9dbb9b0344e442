"""Files that `--tasks_file` selects; every other file is named as skipped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from apache_beam.io.filesystem import FileSystem

from corpus.layouts import JSON_SUFFIXES, decompressed_name
from corpus.tables import TABLE_SUFFIXES
from transforms.remote_input import pin, without_commit, without_query
from transforms.saved_dataset import SavedDatasetError, without_stale_files
from transforms.storage import (
    StorageError,
    TasksUnreadableError,
    exists,
    is_url,
    list_objects,
    storage_errors,
)

_EXTRACT = "extract it and name the files or their folder"
_CONVERT = "convert it to JSON Lines or Parquet with a column text, messages, or train and test"
UNREAD: dict[str, str] = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".7z", ".rar"), _EXTRACT),
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".feather", ".avro", ".orc"), _CONVERT),
    **dict.fromkeys((".txt", ".md"), 'write it as JSON Lines, {"id": ..., "text": ...}'),
}
"""Extensions of files that are never read, with advice."""


class TasksNotFoundError(ValueError):
    """A value of `--tasks_file` without a readable file."""


@dataclass(frozen=True)
class Pattern:
    """One resolved input.

    Attributes:
        folder: absolute or `gs://` path that ends with "/"; not a glob.
        rest: name of a file in the folder, or a glob of paths below it. In a glob, `*` and `?`
            stand for characters of one name, `**` for any characters, `[...]` for one of a set.
        is_file: True if `rest` is a name, whatever its characters.
        output_dir: folder without inputs, which may be below `folder`.
        commits: commits of datasets on the Hugging Face hub, by name.
    """

    folder: str
    rest: str
    is_file: bool = False
    output_dir: str = ""
    commits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Matches:
    """Sorted paths: the files to read, and the files and folders (ending in "/") left out."""

    files: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def resolve_patterns(
    tasks_files: Sequence[str | os.PathLike[str]], output_dir: str = ""
) -> tuple[Pattern, ...]:
    """Resolve each input to a pattern that matches at least one file to read.

    An existing file or folder wins over a glob of the same spelling. Files in `output_dir` are not
    inputs, even if a folder of tasks contains it.

    Raises:
        TasksNotFoundError: if an input matches nothing, cannot be listed or cannot be read, or if a
            dataset of the hub is given at two commits; names it.
    """
    output_dir = output_dir and _absolute(output_dir)
    patterns = tuple(_resolve(os.fspath(path), output_dir) for path in tasks_files)
    commits = dict[str, str]()
    for pattern in patterns:
        for name, commit in pattern.commits.items():
            if (other := commits.setdefault(name, commit)) != commit:
                # Samples of both would have the same ids.
                raise TasksNotFoundError(
                    f"--tasks_file hf://datasets/{name}: its revisions {other} and {commit} cannot "
                    "be in one run; give one of them, or use a run for each"
                )
    return patterns


def common_root(patterns: Sequence[Pattern]) -> str:
    """Return the deepest folder that holds every possible match, with a slash at its end."""
    shared = os.path.commonprefix([each.folder for each in patterns])  # noqa: RUF071
    return shared[: shared.rfind("/") + 1]


def source_of(path: str, root: str) -> str:
    r"""Return a path below the common root, without the commit of a dataset on the hub.

    Bytes that are not UTF-8 are written as `\xe9`.
    """
    name = without_commit(path).removeprefix(without_commit(root))
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _absolute(path: str) -> str:
    """Return the canonical spelling of a path."""
    return path.rstrip("/") if is_url(path) else os.path.abspath(os.path.expanduser(path))


def _resolve(path: str, output_dir: str) -> Pattern:
    flag = f"--tasks_file {_shown(path)}"
    if "://" in path and not is_url(path):
        raise TasksNotFoundError(
            f"{flag}: must be local, gs://, hf://datasets/ORG/NAME[@REVISION]/PATH, s3:// or https://"
        )
    if not path:
        raise TasksNotFoundError(f"{flag}: no such file")
    try:
        with storage_errors(path, TasksUnreadableError):
            path, commits = pin(path)
            pattern = replace(_pattern_of(path), output_dir=output_dir, commits=commits)
            found = match_files(pattern)
    except StorageError as error:
        raise TasksNotFoundError(f"{flag} cannot be listed: {error}") from error
    except SavedDatasetError as error:
        raise TasksNotFoundError(f"{flag}: {error}") from error
    if pattern.is_file and (advice := _advice(path)):
        raise TasksNotFoundError(f"{flag}: files of this type are not read; {advice}")
    if found.files:
        return pattern
    if found.skipped:
        names = [_shown(each.removeprefix(pattern.folder)) for each in found.skipped]
        advice = next(filter(None, map(_advice, found.skipped)), "")
        raise TasksNotFoundError(
            f"{flag}: holds no file of tasks ({', '.join(JSON_SUFFIXES + TABLE_SUFFIXES)}, or "
            f"compressed), only {', '.join(names[:3])}"
            + f" and {len(names) - 3} more" * (len(names) > 3)
            + (f"; {advice}" if advice else "")
        )
    if pattern.rest == "**":
        raise TasksNotFoundError(f"{flag}: the folder is empty")
    raise TasksNotFoundError(
        f"{flag}: no such file. Give a file, a folder, a glob in quotes, or a gs:// path of tasks "
        "in JSON, JSON Lines, Parquet or Arrow."
    )


def _pattern_of(path: str) -> Pattern:
    if is_url(path):
        place = path
        is_folder = next(list_objects(place.rstrip("/") + "/"), None) is not None
        is_file = not place.endswith("/") and exists(place)
    else:
        place = _absolute(path)
        is_folder, is_file = os.path.isdir(place), os.path.isfile(place)
        if os.path.exists(place) and not is_folder and not is_file:
            raise TasksNotFoundError(
                f"--tasks_file {_shown(path)}: a pipe or a device; write its content to a file"
            )
    if is_file:
        folder, name = os.path.split(place)
        return Pattern(folder.rstrip("/") + "/", name, is_file=True)
    if is_folder:
        return Pattern(place.rstrip("/") + "/", "**")
    fixed = re.split(r"[*?\[]", place, maxsplit=1)[0]
    folder = fixed[: fixed.rfind("/") + 1]
    return Pattern(folder, place.removeprefix(folder).rstrip("/"))


def match_files(pattern: Pattern) -> Matches:
    """Return the files that a pattern matches.

    A matched folder stands for all data files below it. Hidden files and folders
    are left out unless the pattern names them.

    Raises:
        SavedDatasetError: if a saved dataset of Hugging Face cannot be read in its present form.
    """
    if pattern.is_file:
        return Matches((pattern.folder + pattern.rest,))
    matches = _translated(pattern.rest).match
    anywhere, depth = "**" in pattern.rest, pattern.rest.count("/")
    shows_hidden = any(map(_is_hidden, pattern.rest.split("/")))

    def enters(folder: str) -> bool:
        """Return True if files below a folder, given relative to `pattern.folder`, can match."""
        if pattern.folder + folder == pattern.output_dir:
            return False
        if _is_hidden(os.path.basename(folder)) and not shows_hidden:
            return False
        return anywhere or folder.count("/") < depth or within(folder)

    def within(path: str) -> bool:
        """Return True if a path, or a folder that holds it, matches."""
        return any(matches(path[:end]) for end in [*_slashes(path), len(path)])

    def names(folder: str) -> bool:
        """Return True if the pattern matches a folder, or one whose files would match."""
        parts = pattern.rest.split("/")[: folder.count("/") + 1]
        return anywhere or within(folder) or bool(_translated("/".join(parts)).match(folder))

    paths = _objects if is_url(pattern.folder) else _local_paths
    files, skipped = list[str](), set[str]()
    for path in paths(pattern.folder, "", enters):
        if pattern.folder + path == pattern.output_dir + "/":
            continue
        if not (names(path[:-1]) if path.endswith("/") else within(path)):
            continue
        # Files of a glob with another extension, such as *.dump, are read by content.
        is_named = not pattern.rest.endswith("*") and matches(path) and not _advice(path)
        wanted = is_named or _holds_data(path)
        hidden = _is_hidden(os.path.basename(path)) and not shows_hidden
        if wanted and not hidden and not path.endswith("/") and _is_regular(pattern.folder + path):
            files.append(pattern.folder + path)
        else:
            skipped.add(pattern.folder + path)
    kept = without_stale_files(files)
    return Matches(tuple(sorted(kept)), tuple(sorted(skipped | (set(files) - set(kept)))))


def match_all(patterns: Sequence[Pattern]) -> Matches:
    """Return the files that any of the patterns matches, and the files that none of them reads."""
    found = [match_files(each) for each in patterns]
    files = {path for each in found for path in each.files}
    skipped = {path for each in found for path in each.skipped} - files
    return Matches(tuple(sorted(files)), tuple(sorted(skipped)))


def _translated(glob: str) -> re.Pattern[str]:
    """Translate as Beam does, except that `**/` also matches zero folders, as in shells."""
    return re.compile(re.sub(r"(^|\)|/)\.\*/", r"\1(?:.*/)?", FileSystem.translate_pattern(glob)))


def _slashes(path: str) -> list[int]:
    return [index for index, char in enumerate(path) if char == "/"]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _holds_data(path: str) -> bool:
    return path.lower().endswith(TABLE_SUFFIXES) or decompressed_name(path).lower().endswith(
        JSON_SUFFIXES
    )


def _is_regular(path: str) -> bool:
    """Return False for a pipe or a device, where opening could block forever."""
    return is_url(path) or os.path.isfile(path) or not os.path.exists(path)


def _advice(path: str) -> str:
    name = without_query(path).lower()
    return next((UNREAD[each] for each in UNREAD if name.endswith(each)), "")


def _shown(path: str) -> str:
    return repr(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _objects(root: str, _: str, enters: Callable[[str], bool]) -> Iterator[str]:
    """Yield the same as `_local_paths`, for a bucket or another URL."""
    for path, _size in list_objects(root):
        relative = path.removeprefix(root)
        if relative.endswith("/") or not relative:
            continue  # A placeholder for a folder.
        closed = (relative[:end] for end in _slashes(relative) if not enters(relative[:end]))
        folder = next(closed, None)
        yield relative if folder is None else folder + "/"


def _local_paths(
    root: str, folder: str, enters: Callable[[str], bool], above: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the paths of all files below a folder, and of the folders that are not entered.

    Paths are relative to `root`; paths of folders end with "/". Links are followed, except links to
    a parent folder.
    """
    here = os.path.realpath(root + folder)
    if not os.path.isdir(here):
        return
    with os.scandir(root + folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        path = folder + entry.name
        if not entry.is_dir():
            yield path
        elif enters(path) and os.path.realpath(root + path) not in (*above, here):
            yield from _local_paths(root, path + "/", enters, (*above, here))
        else:
            yield path + "/"
