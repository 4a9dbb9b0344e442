"""From vectors to tokens of tasks, and from tokens to vectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activation_dataset.index import ShardIndex
from activation_dataset.prompts import ROLES, TEST_PAIR
from activation_dataset.reading.shards import Shards

Role = Literal["input", "output", "text"]
"""Content of a token: a cell of an input grid, a cell of an output grid, or text."""

Example = int | Literal["test"]
"""A training pair by its number from 0, or the test pair."""

_TEST = re.compile(r"/([0-9]+)(?:\?(d4=[0-7]&colors=[0-9]{10}&order=[0-9-]+))?\Z")


@dataclass(frozen=True)
class SampleName:
    """Parts of a sample's id; docs/format.md describes ids.

    Attributes:
        source: file of the task or document.
        task_id: id of the task or document in its file.
        test: number of the test input, None for a document.
        variant: augmentation key of a variant, "" for the task itself.
    """

    source: str
    task_id: str
    test: int | None
    variant: str

    @classmethod
    def of(cls, sample_id: str, task_id: str) -> SampleName:
        """Split an id. The `task_id` of its record makes ids with "/" and "#" unambiguous.

        Raises:
            ValueError: the id does not contain the task's id.
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
    """Origin of a vector, the same at every site.

    Attributes:
        number: number of the vector.
        sample: number of its sample.
        sample_id: id of its sample.
        name: parts of that id.
        position: position of the token in the prompt, None for the mean over a prompt.
        token_id: the token, None for a mean.
        role: content of the token, None for a mean.
        example, row, col: grid cell that the token shows, None if it shows none. For a variant,
            `corpus.augment` maps the cell back to the task's.
    """

    number: int
    sample: int
    sample_id: str
    name: SampleName
    position: int | None = None
    token_id: int | None = None
    role: Role | None = None
    example: Example | None = None
    row: int | None = None
    col: int | None = None

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
    """Properties of the wanted tokens; None matches any.

    Attributes:
        task: id of the task or document. Ids can repeat in other files: see `source`.
        source: file of the task or document.
        test: number of the test input.
        sample: id of the sample.
        role: content of the token.
        example: pair of the cell.
        row, col: position of the cell, from 0.

    Raises:
        ValueError: no token can have a value.
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
        if self.role == "text" and self._cell != (None, None, None):
            raise ValueError("a token of text has no example, row or column")

    @property
    def _cell(self) -> tuple[Example | None, int | None, int | None]:
        return self.example, self.row, self.col

    @property
    def selects_tokens(self) -> bool:
        """True if the query tells tokens of one prompt apart."""
        return (self.role, *self._cell) != (None,) * 4

    def samples(self, index: ShardIndex) -> NDArray[np.bool_]:
        """Return the samples of a shard that match, [samples] bool."""
        ids = zip(index.sample_ids, index.task_ids, strict=True)
        return np.array([self._matches(*each) for each in ids], np.bool_)

    def tokens(self, cells: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Return the tokens that match, [n] bool, given the cells [n, 4] int16 that they show."""
        chosen = np.ones(len(cells), np.bool_)
        if self.selects_tokens:
            shows_cell = cells[:, 1] >= 0
            chosen = ~shows_cell if self.role == "text" else shows_cell
        example = TEST_PAIR if self.example == "test" else self.example
        role = ROLES.index(self.role) if self.role in ROLES else None
        for column, wanted in enumerate((example, role, self.row, self.col)):
            if wanted is not None:
                chosen &= cells[:, column] == wanted
        return chosen

    def _matches(self, sample_id: str, task_id: str) -> bool:
        if self.task not in (None, task_id) or self.sample not in (None, sample_id):
            return False
        if self.source is None and self.test is None:
            return True
        name = SampleName.of(sample_id, task_id)
        return self.source in (None, name.source) and self.test in (None, name.test)


def where(shards: Shards, query: TokenQuery) -> NDArray[np.int64]:
    """Return the numbers of the vectors whose tokens match a query, [n] int64, ascending.

    Raises:
        ValueError: the query selects tokens, but the vectors are means over prompts; or the dataset
            does not have the task, source or sample.
    """
    if query.selects_tokens and shards.kind.pooling == "mean":
        raise ValueError(
            "the vectors of this dataset are means over prompts (pooling mean), which belong to no "
            "token: query tasks, test inputs or samples only"
        )
    found = [np.empty(0, np.int64)]
    indexes = [shards.index(shard) for shard in range(len(shards.metadata.shards))]
    for shard, index in enumerate(indexes):
        samples = query.samples(index)
        if samples.any():
            chosen = np.repeat(samples, index.vector_counts)
            if query.selects_tokens:
                pooled = index.pooling != "none"
                chosen &= query.tokens(index.cells[index.token_ends - 1] if pooled else index.cells)
            found.append(shards.shard_numbers(shard).start + np.flatnonzero(chosen))
    numbers = np.concatenate(found)
    if not len(numbers):
        _check_names(indexes, query)
    return numbers


def trace(shards: Shards, number: int) -> Origin:
    """Return the origin of a vector.

    Raises:
        IndexError: the number is not in 0..num_vectors - 1.
    """
    places = shards.locate([number])
    sample = int(places.samples[0])
    sample_id, task_id = shards.sample_id(sample), shards.task_id(sample)
    name = SampleName.of(sample_id, task_id)
    if shards.kind.pooling == "mean":
        return Origin(number, sample, sample_id, name)
    token = int(places.positions[0]), int(places.token_ids[0])
    example, role, row, col = places.cells[0].tolist()
    if role < 0:
        return Origin(number, sample, sample_id, name, *token, "text")
    pair: Example = "test" if example == TEST_PAIR else example
    kind: Role = "input" if ROLES[role] == "input" else "output"
    return Origin(number, sample, sample_id, name, *token, kind, pair, row, col)


def _check_names(indexes: Sequence[ShardIndex], query: TokenQuery) -> None:
    """Raise ValueError if a name in the query is not in the dataset, such as a misspelled one."""
    ids = [each for index in indexes for each in zip(index.sample_ids, index.task_ids, strict=True)]
    for what, wanted, known in (
        ("task", query.task, {task_id for _, task_id in ids}),
        ("sample", query.sample, {sample_id for sample_id, _ in ids}),
        ("source", query.source, {SampleName.of(*each).source for each in ids}),
    ):
        if wanted is not None and wanted not in known:
            some = get_close_matches(wanted, known, 3) or sorted(known)[:3]
            raise ValueError(
                f"the dataset has no {what} {wanted!r}, but {len(known)} others such as "
                f"{', '.join(map(repr, some))}; rejected tasks are listed in its errors/"
            )
