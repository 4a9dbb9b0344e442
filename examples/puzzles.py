"""Groups of samples that show the same puzzle or text, which a split must not separate."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator

import numpy as np
from numpy.typing import NDArray

from activation_dataset import ActivationDataset
from activation_dataset.prompts import ROLES, TEST_PAIR, UNKNOWN_CELL
from activation_dataset.reading.provenance import SampleName
from activation_dataset.reporting.grid_figure import NO_COLOR, colors_of

# Ids that the job assigns to records without an id. They are unique only within their file.
_LINE = re.compile(r"(?:line|item|row)-[0-9]{6}")
# Ids of tasks that are made from the pairs of a re-arc file.
_OF_PAIRS = re.compile(r"(.+)-[0-9]{6}", re.DOTALL)
# Ids of chunks of a document, such as "a/3", "a#3", "a_chunk_3" or "a (part 3)".
_CHUNK = re.compile(
    r"(.*[^\W_]).*?(?:[/#:|]|(?:chunk|part|page|passage|paragraph|section|segment)\W*_?)[0-9]+\W*",
    re.DOTALL | re.IGNORECASE,
)

# Only documents with common text share a run of this many tokens.
_RUN = 64
_SAMPLED = 16

# Smaller pairs, or pairs of a single color, can be equal in different puzzles by chance.
_LEAST_CELLS = 16


def puzzles(dataset: ActivationDataset) -> list[str]:
    """Return the name of each sample's puzzle, the smallest name in its group.

    Ids group variants and test inputs of a task, tasks from the pairs of one re-arc file, tasks
    with the same id in different files, and chunks of a document. Common content also groups
    samples: a training pair, regardless of symmetry, colors and order, or a run of 64 tokens of
    documents.

    Raises:
        ValueError: if the grid cells of a task are unknown.
    """
    first: dict[Hashable, int] = {}
    parents: list[int] = []
    names: list[str] = []

    def root(sample: int) -> int:
        while parents[sample] != sample:
            parents[sample] = sample = parents[parents[sample]]
        return sample

    def join(sample: int, key: Hashable) -> None:
        other = root(first.setdefault(key, sample))
        parents[root(sample)] = other

    for shard in range(len(dataset.metadata.shards)):
        index = dataset.index(shard)
        starts = index.token_ends - index.token_counts
        for number, ids in enumerate(zip(index.sample_ids, index.task_ids, strict=True)):
            sample, name = len(parents), SampleName.of(*ids)
            parents.append(sample)
            names.append(puzzle_of(name))
            join(sample, names[-1])
            tokens = slice(int(starts[number]), int(index.token_ends[number]))
            token_ids, cells = index.token_ids[tokens], index.cells[tokens]
            if name.test is None:
                keys: Iterator[Hashable] = _runs(token_ids)
            elif (name.source, name.task_id) in first:
                continue  # An earlier test input or variant has the same pairs.
            elif (cells == UNKNOWN_CELL).any():
                raise ValueError(
                    f"{dataset.path}: the grid cells of sample {ids[0]!r} are unknown, because the "
                    "tokenizer does not have one token for each cell. Puzzles cannot be compared: "
                    "hold out tasks by a list of task ids"
                )
            else:
                join(sample, (name.source, name.task_id))
                colors = colors_of(token_ids, dataset.metadata.run)
                # A digit can have several token ids, for example with a leading space.
                keys = _pairs(np.where(colors == NO_COLOR, token_ids + NO_COLOR, colors), cells)
            for key in keys:
                join(sample, key)
    smallest: dict[int, str] = {}
    for sample, name_of_it in enumerate(names):
        group = root(sample)
        smallest[group] = min(smallest.get(group, name_of_it), name_of_it)
    return [smallest[root(sample)] for sample in range(len(parents))]


def puzzle_of(name: SampleName) -> str:
    """Return the name of a puzzle or document, derived only from the id of a sample."""
    if _LINE.fullmatch(name.task_id):
        return f"{name.source}#{name.task_id}"
    match = (_CHUNK if name.test is None else _OF_PAIRS).fullmatch(name.task_id)
    return match[1] if match else name.task_id


def _pairs(colors: NDArray[np.int64], cells: NDArray[np.int16]) -> Iterator[Hashable]:
    """Yield a key of each large training pair and a key of all pairs.

    The keys do not depend on symmetry and colors.
    """
    keys = []
    examples = cells[cells[:, 1] >= 0, 0]
    for example in np.unique(examples[examples != TEST_PAIR]).tolist():
        grids = []
        for role in range(len(ROLES)):
            chosen = (cells[:, 0] == example) & (cells[:, 1] == role)
            rows, columns = cells[chosen, 2], cells[chosen, 3]
            if len(rows):
                grid = np.full((rows.max() + 1, columns.max() + 1), -1, np.int64)
                grid[rows, columns] = colors[chosen]
                grids.append(grid)
        keys.append(
            min(
                _relabeled([np.rot90(grid.T if flip else grid, turn) for grid in grids])
                for flip in (False, True)
                for turn in range(4)
            )
        )
        distinct = len(np.unique(np.concatenate([grid.ravel() for grid in grids])))
        large = sum(grid.size for grid in grids) >= _LEAST_CELLS
        if len(grids) == len(ROLES) and large and distinct > 1:
            yield keys[-1]
    if keys:
        yield tuple(sorted(keys))


def _relabeled(grids: list[NDArray[np.int32]]) -> bytes:
    """Return grids as bytes, with colors numbered by first occurrence."""
    cells = np.concatenate([grid.ravel() for grid in grids])
    _, firsts, colors = np.unique(cells, return_index=True, return_inverse=True)
    ranks = np.argsort(np.argsort(firsts))
    return repr([grid.shape for grid in grids]).encode() + ranks[colors].astype(np.uint16).tobytes()


def _runs(token_ids: NDArray[np.int32]) -> Iterator[Hashable]:
    """Yield keys of some runs of a document's tokens, selected by content.

    A document shorter than a run has one key.
    """
    if len(token_ids) < _RUN:
        yield token_ids.tobytes()
        return
    tokens = token_ids.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros(len(tokens) - _RUN + 1, np.uint64)
    for place in range(_RUN):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[place : place + len(hashes)]
    hashes ^= hashes >> np.uint64(29)
    yield int(hashes[0])
    yield from hashes[hashes % np.uint64(_SAMPLED) == 0].tolist()
