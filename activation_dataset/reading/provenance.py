"""Which vectors are of which tokens, and the reverse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activation_dataset.prompts import ROLES, TEST_PAIR

if TYPE_CHECKING:
    from activation_dataset.index import ShardIndex
    from activation_dataset.reading.reader import ActivationDataset

Role = Literal["input", "output", "text"]
"""What a token shows: a cell of an input grid, one of an output grid, or no cell of a grid."""

Example = int | Literal["test"]
"""A training pair by its number from 0, or the test pair."""

_TEST = re.compile(r"/([0-9]+)(?:\?(d4=[0-7]&colors=[0-9]{10}&order=[0-9-]+))?\Z")


@dataclass(frozen=True)
class SampleName:
    """What a sample's id says; docs/format.md describes ids.

    Attributes:
        source: the file that the task or document was read from.
        task_id: id of the task or document in its file.
        test: number of the test input, None for a document.
        variant: key of the variant of the task, "" for the task as its file has it.
    """

    source: str
    task_id: str
    test: int | None
    variant: str

    @classmethod
    def of(cls, sample_id: str, task_id: str) -> SampleName:
        """Takes an id apart. `task_id`, as records have it, tells ids with "/" and "#" apart.

        Raises:
            ValueError: the id is not made of that task's.
        """
        end = f"#{task_id}"
        if sample_id.endswith(end):
            return cls(sample_id.removesuffix(end), task_id, None, "")
        match = _TEST.search(sample_id)
        if match is None or not (whole := sample_id[: match.start()]).endswith(end):
            raise ValueError(f"sample {sample_id!r} is not of the task {task_id!r}")
        return cls(whole.removesuffix(end), task_id, int(match[1]), match[2] or "")


@dataclass(frozen=True)
class Origin:
    """Where one vector comes from; the same in every layer.

    Attributes:
        number: the vector's number.
        sample: number of its sample.
        sample_id: id of its sample.
        name: what that id says.
        position: place of the token in the prompt, None for the mean over a prompt.
        token_id: the token, None for a mean.
        role: what the token shows, None for a mean.
        example, row, col: where the cell is, None if the token shows none. Of a variant's grids,
            which `corpus.augment` leads back to the task's.
    """

    number: int
    sample: int
    sample_id: str
    name: SampleName
    position: int | None
    token_id: int | None
    role: Role | None
    example: Example | None
    row: int | None
    col: int | None

    def __str__(self) -> str:
        if self.position is None:
            return f"{self.sample_id}, mean over the prompt"
        token = f"{self.sample_id}, token {self.position}"
        if self.role == "text":
            return f"{token}, text"
        pair = "the test" if self.example == "test" else f"example {self.example}"
        return f"{token}, {self.role} of {pair}, row {self.row}, column {self.col}"


@dataclass(frozen=True)
class TokenQuery:
    """Which vectors are wanted; what is None does not matter.

    Attributes:
        task: id of the task or document. Ids recur across files: see `source`.
        source: the file that it was read from.
        test: number of the test input that was asked for.
        sample: id of the sample.
        role: what the token shows.
        example: of which pair the cell is.
        row, col: of the cell, from 0.

    Raises:
        ValueError: a value that no token can have.
    """

    task: str | None = None
    source: str | None = None
    test: int | None = None
    sample: str | None = None
    role: Role | None = None
    example: Example | None = None
    row: int | None = None
    col: int | None = None

    def __post_init__(self) -> None:
        if self.role is not None and self.role not in get_args(Role):
            raise ValueError(f"role is {self.role!r}, expected one of {', '.join(get_args(Role))}")
        for name in ("test", "example", "row", "col"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{name} is {value}, expected a number from 0")
        if isinstance(self.example, str) and self.example != "test":
            raise ValueError(f'example is {self.example!r}, expected a number from 0, or "test"')
        if self.role == "text" and self._asks_for_cells:
            raise ValueError("a token of text has no example, row or column")

    @property
    def asks_for_tokens(self) -> bool:
        """Whether it tells tokens of one prompt apart."""
        return self.role is not None or self._asks_for_cells

    @property
    def _asks_for_cells(self) -> bool:
        return (self.example, self.row, self.col) != (None, None, None)

    def samples(self, index: ShardIndex) -> NDArray[np.bool_]:
        """[samples] bool, which samples of a shard may have such tokens."""
        chosen = np.ones(len(index), np.bool_)
        if self.task is not None:
            chosen &= [index.task_id(number) == self.task for number in range(len(index))]
        if (self.source, self.test, self.sample) != (None, None, None):
            for number in np.flatnonzero(chosen).tolist():
                chosen[number] = self._is_of(index.sample_id(number), index.task_id(number))
        return chosen

    def tokens(self, cells: NDArray[np.int16]) -> NDArray[np.bool_]:
        """[n] bool, which tokens are such tokens, by the cells, [n, 4] int16, that they show."""
        chosen = np.ones(len(cells), np.bool_)
        if self.asks_for_tokens:
            shows_cell = cells[:, 1] >= 0
            chosen = ~shows_cell if self.role == "text" else shows_cell
        if self.role in ROLES:
            chosen &= cells[:, 1] == ROLES.index(self.role)
        if self.example is not None:
            chosen &= cells[:, 0] == (TEST_PAIR if self.example == "test" else self.example)
        for column, wanted in ((2, self.row), (3, self.col)):
            if wanted is not None:
                chosen &= cells[:, column] == wanted
        return chosen

    def _is_of(self, sample_id: str, task_id: str) -> bool:
        if self.sample not in (None, sample_id):
            return False
        name = SampleName.of(sample_id, task_id)
        return self.source in (None, name.source) and self.test in (None, name.test)


def where(dataset: ActivationDataset, query: TokenQuery) -> NDArray[np.int64]:
    """The numbers of the vectors that a query asks for, [n] int64, ascending.

    Raises:
        ValueError: it asks for tokens, and the dataset's vectors are means over prompts; or for a
            task, source or sample that the dataset does not have.
    """
    if query.asks_for_tokens and dataset.kind.pooling == "mean":
        raise ValueError(
            "the vectors of this dataset are means over prompts (pooling mean), which belong to no "
            "token: ask for tasks, test inputs or samples only"
        )
    found = np.concatenate([np.empty(0, np.int64), *_found(dataset, query)])
    if not len(found) and (query.task, query.sample, query.source) != (None, None, None):
        _check_names(dataset, query)
    return found


def _check_names(dataset: ActivationDataset, query: TokenQuery) -> None:
    """Tells a name that is misspelt from tokens that are not there."""
    ids = [(dataset.sample_id(n), dataset.task_id(n)) for n in range(len(dataset))]
    for name, wanted, known in (
        ("task", query.task, {task_id for _, task_id in ids}),
        ("sample", query.sample, {sample_id for sample_id, _ in ids}),
        ("source", query.source, {SampleName.of(*each).source for each in ids}),
    ):
        if wanted is not None and wanted not in known:
            some = get_close_matches(wanted, known, 3) or sorted(known)[:3]
            raise ValueError(
                f"the dataset has no {name} {wanted!r}, but {len(known)} others such as "
                f"{', '.join(map(repr, some))}; tasks that were rejected are in its errors/"
            )


def _found(dataset: ActivationDataset, query: TokenQuery) -> Iterator[NDArray[np.int64]]:
    """The numbers in each shard."""
    start = 0
    for shard in range(len(dataset.metadata.shards)):
        index = dataset.index(shard)
        samples = query.samples(index)
        if samples.any():
            chosen = np.repeat(samples, index.vector_counts)
            if query.asks_for_tokens:
                cells = index.cells[index.token_ends - 1] if index.pooled else index.cells
                chosen &= query.tokens(cells)
            yield start + np.flatnonzero(chosen)
        start += int(index.vector_ends[-1]) if len(index) else 0


def trace(dataset: ActivationDataset, number: int) -> Origin:
    """Where a vector comes from.

    Args:
        number: the vector's number, 0..num_vectors - 1.

    Raises:
        IndexError: there is no such vector.
    """
    if not 0 <= number < dataset.num_vectors:
        raise IndexError(f"vector {number} is not in 0..{dataset.num_vectors - 1}")
    places = dataset.locate(np.array([number]))
    sample = int(places.samples[0])
    sample_id, task_id = dataset.sample_id(sample), dataset.task_id(sample)
    name = SampleName.of(sample_id, task_id)
    if dataset.kind.pooling == "mean":
        return Origin(number, sample, sample_id, name, *[None] * 6)
    token = int(places.positions[0]), int(places.token_ids[0])
    example, role, row, col = places.cells[0].tolist()
    if role < 0:
        return Origin(number, sample, sample_id, name, *token, "text", None, None, None)
    pair: Example = "test" if example == TEST_PAIR else example
    kind: Role = "input" if ROLES[role] == "input" else "output"
    return Origin(number, sample, sample_id, name, *token, kind, pair, row, col)
