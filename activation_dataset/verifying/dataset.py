"""Verifying a dataset: every byte of every file against what it must be."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context

from activation_dataset.fields import FieldError, Fields
from activation_dataset.folder import Folder, open_folder
from activation_dataset.format import (
    ERRORS_FOLDER,
    METADATA_FILE,
    PROMPTS_FOLDER,
    Pooling,
    index_file,
    is_partial_file,
    parse_prompts_file,
    parse_shard_file,
    prompts_file,
    shard_file,
)
from activation_dataset.index_file import IndexFileError, decode_index, index_key
from activation_dataset.manifest import FileEntry, Manifest, Shard
from activation_dataset.metadata import Metadata, RunDescription
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from activation_dataset.verifying.layer_file import (
    ExpectedRecords,
    LayerFileError,
    check_records,
    expected_records,
    verify_file,
)
from activation_dataset.verifying.prompts import check_prompts, differences, verify_prompts
from activation_dataset.verifying.sample_table import SampleTable

RERUN = "run the same command again, which redoes it"
DELETE = "delete it"


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: path below the dataset's folder.
        what: what is wrong with it.
        remedy: what to do about it.
        redo: whether it is a layer file, or one of prompts, that must be written again.
    """

    file: str
    what: str
    remedy: str
    redo: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}: {self.remedy}"


@dataclass(frozen=True)
class Report:
    """What verifying a dataset found.

    Attributes:
        problems: all that is wrong, sorted by file; empty for a sound dataset.
        files: layer files and files of prompts that were read.
        bytes: bytes of them.
    """

    problems: tuple[Problem, ...]
    files: int
    bytes: int

    @property
    def repair_list(self) -> tuple[str, ...]:
        """Paths of the files that a resume would write again."""
        return tuple(sorted({problem.file for problem in self.problems if problem.redo}))


@dataclass(frozen=True)
class ShardReport:
    """What verifying one shard in all its layers found.

    Attributes:
        problems: all that is wrong.
        bytes: bytes read.
        statistics: site to statistics, for each file that is what the metadata says.
        sample_ids: of the shard, empty if no file could be read.
    """

    problems: list[Problem]
    bytes: int
    statistics: dict[Site, LayerStatistics]
    sample_ids: list[str]


def verify(path: str | os.PathLike[str], workers: int = 1) -> Report:
    """Checks a dataset against its metadata, byte by byte, and reports all that is wrong.

    Checked are the metadata itself, each file's presence, size and CRC32C; each record's framing,
    CRCs and encoding; the samples, their order and token_ids across layers and in the prompts, that
    none comes twice; shapes, counts and totals; the statistics, recomputed to the last bit; the
    rejected tasks; and that no other or partial file lies between those of the dataset.

    Args:
        path: local folder, or a URL that fsspec can open.
        workers: processes that share the shards. Above 1, call it from a guarded __main__.

    Raises:
        OSError: the folder itself cannot be listed, or a worker was killed.
        ImportError: a URL that cannot be opened here.
    """
    folder = open_folder(path)
    present = set(folder.files())
    partial = [
        Problem(file, "left behind by a writer that was interrupted", DELETE)
        for file in present
        if is_partial_file(file)
    ]
    metadata, problems = _read_metadata(folder, present)
    problems += partial
    if metadata is None:
        return _verify_without_metadata(folder, present, problems)
    problems += _unlisted_files(metadata, present)
    shards = _verify_shards(folder, metadata, workers)
    for shard in shards:
        problems += shard.problems
    problems += _check_statistics(metadata, shards)
    problems += _repeated_samples(metadata, shards)
    problems += _check_rejected(folder, metadata, present)
    files = sum(1 + len(batch.files) for batch in metadata.shards)
    return Report(tuple(sorted(set(problems))), files, sum(shard.bytes for shard in shards))


def verify_shard(folder: Folder, run: RunDescription, batch: Shard, num_shards: int) -> ShardReport:
    """Checks all files of one shard against what the metadata says and against each other."""
    kind = RecordKind(run.pooling, run.storage_dtype, run.hidden_dim)
    problems: list[Problem] = []
    statistics: dict[Site, LayerStatistics] = {}
    total = 0
    expected: ExpectedRecords | None = None
    for layer in run.sites:
        entry = batch.files[layer]
        try:
            with folder.open(entry.path) as stream:
                records = expected or expected_records(stream, entry.path, kind)
                manifest = verify_file(stream, layer, batch.shard, num_shards, records)
        except FileNotFoundError:
            problems.append(Problem(entry.path, "missing", RERUN, redo=True))
            continue
        except OSError as error:
            problems.append(Problem(entry.path, f"cannot be read: {error}", RERUN, redo=True))
            continue
        except LayerFileError as error:
            problems += [Problem(entry.path, what, RERUN, redo=True) for what in error.problems]
            continue
        total += manifest.file.bytes
        wrong = _contradictions(manifest, entry, batch)
        if wrong:
            problems.append(Problem(entry.path, wrong, RERUN, redo=True))
            continue
        statistics[layer] = manifest.file.statistics
        expected = records
    samples = expected.table if expected else None
    prompts_problems, prompts_bytes = _verify_prompts(
        folder, run.pooling, batch, num_shards, samples
    )
    problems += prompts_problems + _verify_index(folder, batch, num_shards, kind)
    sample_ids = samples.sample_ids if samples else []
    return ShardReport(problems, total + prompts_bytes, statistics, sample_ids)


def _verify_prompts(
    folder: Folder, pooling: Pooling, batch: Shard, num_shards: int, samples: SampleTable | None
) -> tuple[list[Problem], int]:
    """Checks the file of a shard's prompts, also against the samples of its layer files if known.

    Returns what is wrong, and the bytes read.
    """
    path = batch.prompts.path
    try:
        with folder.open(path) as stream:
            manifest, prompts = verify_prompts(stream, batch.shard, num_shards)
    except FileNotFoundError:
        return [Problem(path, "missing", RERUN, redo=True)], 0
    except OSError as error:
        return [Problem(path, f"cannot be read: {error}", RERUN, redo=True)], 0
    except LayerFileError as error:
        return [Problem(path, what, RERUN, redo=True) for what in error.problems], 0
    wrong = [_contradictions(manifest, batch.prompts, batch)]
    if samples is not None:
        wrong += differences(prompts, samples, pooling)
    problems = [Problem(path, what, RERUN, redo=True) for what in wrong if what]
    return problems, manifest.file.bytes


def _verify_index(folder: Folder, batch: Shard, num_shards: int, kind: RecordKind) -> list[Problem]:
    """Checks the index of a shard, if it has one."""
    path = index_file(batch.shard, num_shards)
    try:
        decode_index(folder.load(path), index_key(batch.prompts, kind))
    except FileNotFoundError:
        return []
    except (OSError, IndexFileError) as error:
        return [Problem(path, str(error), "delete it, or make it again with the command index")]
    return []


def _contradictions(manifest: Manifest, entry: FileEntry, batch: Shard) -> str:
    """In what a file is not as the metadata says, or nothing."""
    found = {
        "bytes": (manifest.file.bytes, entry.bytes),
        "crc32c": (manifest.file.crc32c, entry.crc32c),
        "samples": (manifest.samples, batch.samples),
        "tokens": (manifest.tokens, batch.tokens),
    }
    return "; ".join(
        f"{name} is {seen}, the metadata says {said}"
        for name, (seen, said) in found.items()
        if seen != said
    )


def _verify_shards(folder: Folder, metadata: Metadata, workers: int) -> list[ShardReport]:
    """Of all shards, in order. This process takes them from the last one on, others from the first.

    Raises:
        OSError: another process was killed.
    """
    jobs = [(folder, metadata.run, batch, len(metadata.shards)) for batch in metadata.shards]
    if workers == 1:
        return [verify_shard(*job) for job in jobs]
    left = deque(range(len(jobs)))
    reports: dict[int, ShardReport] = {}

    def give_away() -> None:
        """Has one other process verify shards, one at a time, while any are left."""
        # What is started here inherits it: Ctrl-C is for the process that began, and ends it all.
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in _until_empty(left.popleft):
                reports[number] = pool.submit(verify_shard, *jobs[number]).result()
        except BaseException:
            left.clear()  # so that the error is not kept until the others are through
            raise

    # Spawned, since the caller may have threads, which a fork would break.
    with (
        ProcessPoolExecutor(workers - 1, get_context("spawn")) as pool,
        ThreadPoolExecutor(workers - 1) as threads,
    ):
        givers = [threads.submit(give_away) for _ in range(workers - 1)]
        try:
            for number in _until_empty(left.pop):
                reports[number] = verify_shard(*jobs[number])
            for giver in givers:
                giver.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"a worker process was killed, probably for lack of memory: {error}"
            ) from None
        finally:
            left.clear()
    return [reports[number] for number in range(len(jobs))]


def _until_empty(take: Callable[[], int]) -> Iterator[int]:
    with suppress(IndexError):
        while True:
            yield take()


def _read_metadata(folder: Folder, present: set[str]) -> tuple[Metadata | None, list[Problem]]:
    remedy = "run the same command again, which verifies the layer files and writes it"
    if METADATA_FILE not in present:
        if not any(parse_shard_file(file) or parse_prompts_file(file) for file in present):
            what = "missing, as are files of layers and prompts: this is no dataset"
            return None, [Problem(METADATA_FILE, what, "give the folder that the job wrote to")]
        return None, [Problem(METADATA_FILE, "missing: the run has not finished", remedy)]
    remedy = f"delete it and {remedy}"
    try:
        with folder.open(METADATA_FILE) as stream:
            text = stream.read()
        metadata = Metadata.from_json(text)
    except (OSError, FieldError) as error:
        return None, [Problem(METADATA_FILE, str(error), remedy)]
    if text != metadata.to_json().encode():
        return metadata, [Problem(METADATA_FILE, "not written as this version writes it", remedy)]
    return metadata, []


def _unlisted_files(metadata: Metadata, present: set[str]) -> list[Problem]:
    """Files in folders of layers and prompts that are not listed: of another run, or no one's."""
    listed = {entry.path for batch in metadata.shards for entry in batch.files.values()}
    listed |= {batch.prompts.path for batch in metadata.shards}
    return [
        Problem(file, "not listed in metadata.json", DELETE)
        for file in present - listed
        if file.startswith(("layer_", f"{PROMPTS_FOLDER}/"))
        and "/" in file
        and not is_partial_file(file)
    ]


def _check_statistics(metadata: Metadata, shards: Sequence[ShardReport]) -> list[Problem]:
    """Compares the merged statistics of each layer, all of whose files are sound."""
    problems = []
    for layer in metadata.run.sites:
        merge = OrderedMerge()
        for number, shard in enumerate(shards):
            if layer not in shard.statistics:
                break
            merge.add(number, shard.statistics[layer])
        else:
            if shards and merge.result(len(shards)) != metadata.statistics[layer]:
                problems.append(
                    Problem(
                        METADATA_FILE,
                        f"statistics.{layer} are not those of the layer's files",
                        "delete it and run the same command again, which writes it",
                    )
                )
    return problems


def _repeated_samples(metadata: Metadata, shards: Sequence[ShardReport]) -> list[Problem]:
    first: dict[str, int] = {}
    problems = []
    for number, shard in enumerate(shards):
        for sample_id in shard.sample_ids:
            if sample_id in first:
                file = next(iter(metadata.shards[number].files.values())).path
                what = f"sample {sample_id!r} of shard {first[sample_id]} comes again in this shard"
                problems.append(Problem(file, what, "extract into a new folder"))
            first.setdefault(sample_id, number)
    return problems


def _check_rejected(folder: Folder, metadata: Metadata, present: set[str]) -> list[Problem]:
    """Compares the dead letters with the counts in the metadata."""
    files = sorted(
        file for file in present if file.startswith(f"{ERRORS_FOLDER}/") and file.endswith(".jsonl")
    )
    found: Counter[str] = Counter()
    problems = []
    for file in files:
        try:
            with folder.open(file) as stream:
                for number, line in enumerate(stream, start=1):
                    found[Fields(json.loads(line), f"line {number}").text("reason")] += 1
        except (OSError, ValueError, RecursionError) as error:
            problems.append(Problem(file, f"cannot be read: {error}", RERUN))
    if not problems and found != Counter(metadata.rejected):
        what = f"{dict(found)} tasks in it, the metadata counts {dict(metadata.rejected)} rejected"
        problems.append(Problem(ERRORS_FOLDER, what, RERUN))
    return problems


def _verify_without_metadata(folder: Folder, present: set[str], problems: list[Problem]) -> Report:
    """Checks what can be checked: that no file is missing and that all records are whole."""
    found = {file: place[1:] for file in present if (place := parse_shard_file(file))}
    found |= {file: shard for file in present if (shard := parse_prompts_file(file))}
    counts = sorted({num_shards for _, num_shards in found.values()})
    if len(counts) > 1:
        what = f"files of runs with {' and '.join(map(str, counts))} shards"
        problems.append(Problem(".", what, "delete those of the other run"))
    elif found:
        shards = range(counts[0])
        layers = {layer for layer, _, _ in filter(None, map(parse_shard_file, found))}
        expected = {shard_file(layer, n, counts[0]) for layer in layers for n in shards}
        expected |= {prompts_file(n, counts[0]) for n in shards}
        problems += [Problem(file, "missing", RERUN, redo=True) for file in expected - found.keys()]
    total = 0
    for file in found:
        check = check_prompts if parse_prompts_file(file) else check_records
        try:
            with folder.open(file) as stream:
                wrong = check(stream, file)
                total += stream.seek(0, os.SEEK_END)
        except OSError as error:
            wrong = [f"cannot be read: {error}"]
        problems += [Problem(file, what, RERUN, redo=True) for what in wrong]
    return Report(tuple(sorted(set(problems))), len(found), total)
