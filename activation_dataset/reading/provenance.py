"""Lookup of the token of a vector, and of the vectors of tokens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activation_dataset.index import ShardIndex
from activation_dataset.prompts import NO_TURN, ROLES, TEST_PAIR, UNKNOWN_CELL
from activation_dataset.reading.shards import Shards

Role = Literal["input", "output", "text"]
"""Content of a token: a cell of an input grid or an output grid, or text."""

Example = int | Literal["test"]
"""Number of a training pair, from 0, or "test" for the test pair."""

_WINDOW = re.compile(r"@([0-9]+)\Z")
_TEST = re.compile(r"/([0-9]+)(?:\?(d4=[0-7]&colors=[0-9]{10}&order=[0-9-]+))?\Z")


@dataclass(frozen=True)
class SampleName:
    """Parts of a sample id, which docs/reference/format.md describes.

    Attributes:
        source: file of the task or document.
        task_id: id of the task or document in that file.
        test: number of the test input; None for a document.
        variant: augmentation key of a variant; "" for the original task.
        window: offset of a window in its document; None for a whole document or a task.
    """

    source: str
    task_id: str
    test: int | None
    variant: str
    window: int | None = None

    @classmethod
    def of(cls, sample_id: str, task_id: str) -> SampleName:
        """Split a sample id. The `task_id` of its record makes ids with "/" and "#" unambiguous.

        Raises:
            ValueError: if the sample id does not contain the task id.
        """
        end = f"#{task_id}"
        if sample_id.endswith(end):
            return cls(sample_id.removesuffix(end), task_id, None, "")
        window = _WINDOW.search(sample_id)
        if window and (whole := sample_id[: window.start()]).endswith(end):
            return cls(whole.removesuffix(end), task_id, None, "", int(window[1]))
        match = _TEST.search(sample_id)
        if match is None or not (whole := sample_id[: match.start()]).endswith(end):
            raise ValueError(f"sample {sample_id!r} does not belong to the task {task_id!r}")
        return cls(whole.removesuffix(end), task_id, int(match[1]), match[2] or "")


@dataclass(frozen=True)
class Origin:
    """Origin of a vector, the same at every site.

    Attributes:
        number: number of the vector.
        sample: number of the sample.
        sample_id: id of the sample.
        name: parts of the sample id.
        position: position of the token in the prompt; None for the mean over a prompt.
        token_id: id of the token; None for a mean.
        role: content of the token; None for a mean, or if the cells of the prompt are unknown.
        example: pair of the grid cell that the token shows; None if the token shows no cell.
        row: row of the cell, from 0.
        col: column of the cell, from 0. For a variant, `corpus.augment` maps the cell back to the
            original task.
        document_position: position of the token in the document that contains the prompt, or in the
            prompt if the prompt is not a window; None for a prepended token and for a mean.
        turn: number of the token's chat message, from 0; None if there is none or it is unknown.
        chat_role: role of that message.
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
    document_position: int | None = None
    turn: int | None = None
    chat_role: str | None = None

    def __str__(self) -> str:
        if self.position is None:
            return f"{self.sample_id}, mean over the prompt"
        token = f"{self.sample_id}, token {self.position}"
        if self.turn is not None:
            token += f", message {self.turn} of {self.chat_role}"
        if self.role is None:
            return f"{token}, grid cells unknown"
        if self.role == "text":
            return f"{token}, text"
        pair = "the test" if self.example == "test" else f"example {self.example}"
        return f"{token}, {self.role} of {pair}, row {self.row}, column {self.col}"


def trace(shards: Shards, number: int) -> Origin:
    """Return the task, test input, token and grid cell of a vector.

    Raises:
        IndexError: if the dataset does not have the vector.
    """
    places = shards.locate([number])
    sample = int(places.samples[0])
    sample_id, task_id = shards.sample_id(sample), shards.task_id(sample)
    name = SampleName.of(sample_id, task_id)
    if shards.metadata.run.pooling == "mean":
        return Origin(number, sample, sample_id, name)
    shard, row = shards.shard_of(sample)
    index, turn = shards.index(shard), int(places.turns[0])
    position = int(places.positions[0])
    in_document = int(index.offsets[row]) + position - int(index.prepended_bos[row])
    origin = Origin(
        number,
        sample,
        sample_id,
        name,
        position,
        int(places.token_ids[0]),
        document_position=None if position < index.prepended_bos[row] else in_document,
        turn=None if turn == NO_TURN else turn,
        chat_role=None if turn == NO_TURN else index.roles[row][turn],
    )
    example, role, cell_row, column = places.cells[0].tolist()
    if role == UNKNOWN_CELL:
        return origin
    if role < 0:
        return replace(origin, role="text")
    pair: Example = "test" if example == TEST_PAIR else example
    kind: Role = "input" if ROLES[role] == "input" else "output"
    return replace(origin, role=kind, example=pair, row=cell_row, col=column)


def where(
    shards: Shards,
    *,
    task: str | None = None,
    source: str | None = None,
    test: int | None = None,
    sample: str | None = None,
    role: str | None = None,
    example: Example | None = None,
    row: int | None = None,
    col: int | None = None,
    token: int | Collection[int] | None = None,
    position: int | Collection[int] | None = None,
) -> NDArray[np.int64]:
    """Return the numbers of the vectors of the selected tokens, [n] int64, ascending.

    If cells are selected, samples with unknown cells are excluded with a UserWarning. For example::

        dataset.where(task="007bbfb7", role="output", example=0, row=2, col=1)

    Args:
        shards: the dataset.
        task: id of the task or document. Several files can have the same id.
        source: file of the task or document.
        test: number of the test input.
        sample: id of the sample.
        role: content of the token, "input", "output" or "text"; or the role of its chat message,
            such as "assistant".
        example: pair of the cell, from 0, or "test".
        row: row of the cell, from 0.
        col: column of the cell, from 0.
        token: one or several token ids.
        position: one or several positions in the sample, from 0.

    Raises:
        ValueError: if an argument has an impossible value, the dataset does not have the task,
            source or sample, or tokens are selected but the vectors are means over prompts.
    """
    tokens_wanted, positions_wanted = _whole("token", token), _whole("position", position)
    selects_ids = tokens_wanted is not None or positions_wanted is not None
    cell = (example, row, col)
    is_chat_role = role is not None and role not in get_args(Role)
    selects_cells = cell != (None,) * 3 or (role is not None and not is_chat_role)
    selects_tokens = selects_cells or is_chat_role or selects_ids
    _check(example, {"test": test, "row": row, "col": col})
    if (role == "text" or is_chat_role) and cell != (None,) * 3:
        raise ValueError(f"a token of {role} has no example, row or column")
    if selects_tokens and shards.metadata.run.pooling == "mean":
        raise ValueError(
            "the vectors of this dataset are means over prompts (pooling mean) and belong to no "
            "token: query only by task, source, test or sample"
        )

    def matches(sample_id: str, task_id: str) -> bool:
        if task not in (None, task_id) or sample not in (None, sample_id):
            return False
        if source is None and test is None:
            return True
        name = SampleName.of(sample_id, task_id)
        return source in (None, name.source) and test in (None, name.test)

    found, without_cells = [np.empty(0, np.int64)], set[str]()
    for shard, index in enumerate(_indexes(shards)):
        chosen = np.repeat(
            np.array([matches(*ids) for ids in _ids(index)], bool), index.vector_counts
        )
        if selects_tokens and chosen.any():
            if selects_cells:
                cells = index.cells[index.vector_tokens]
                unknown = chosen & (cells[:, 1] == UNKNOWN_CELL)
                ids = np.repeat(index.sample_ids, index.vector_counts)
                without_cells |= set(ids[unknown].tolist())
                chosen &= _tokens(cells, role, example, row, col) & ~unknown
            if is_chat_role:
                chosen &= _of_chat_role(index, str(role))
            if tokens_wanted is not None:
                chosen &= np.isin(index.token_ids[index.vector_tokens], tokens_wanted)
            if positions_wanted is not None:
                chosen &= np.isin(index.vector_positions, positions_wanted)
        found.append(shards.shard_numbers(shard).start + np.flatnonzero(chosen))
    if without_cells:
        warnings.warn(
            f"the grid cells of {len(without_cells)} samples, such as {min(without_cells)!r}, are "
            "unknown, because the tokenizer does not give each cell its own token; their tokens "
            "are excluded. Query them only by task, source, test or sample.",
            stacklevel=2,
        )
    numbers = np.concatenate(found)
    if not len(numbers):
        _check_names(shards, task, sample, source)
        chat_roles = {each for index in _indexes(shards) for roles in index.roles for each in roles}
        if is_chat_role and role not in chat_roles:
            known = ", ".join([*get_args(Role), *sorted(chat_roles)])
            raise ValueError(f"role is {role!r}, expected one of {known}")
    return numbers


def _of_chat_role(index: ShardIndex, role: str) -> NDArray[np.bool_]:
    """Select vectors whose token is part of a message with this role, [vectors] bool."""
    if not len(index.turns):
        return np.zeros(len(index.vector_tokens), bool)
    turns = index.turns[index.vector_tokens]
    samples = np.repeat(np.arange(len(index)), index.vector_counts)
    longest = max(map(len, index.roles))
    has_role = np.zeros((len(index), longest + 1), bool)  # The last column is for NO_TURN.
    for number, roles in enumerate(index.roles):
        has_role[number, : len(roles)] = [each == role for each in roles]
    found: NDArray[np.bool_] = has_role[samples, turns]
    return found


def _check(example: Example | None, numbers: dict[str, int | None]) -> None:
    if isinstance(example, str) and example != "test":
        raise ValueError(f'example is {example!r}, expected a number from 0, or "test"')
    if not isinstance(example, str):
        numbers = numbers | {"example": example}
    for name, value in numbers.items():
        if value is not None and not (_is_whole(value) and value >= 0):
            raise ValueError(f"{name} is {value!r}, expected a number from 0")


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _whole(name: str, wanted: int | Collection[int] | None) -> NDArray[np.int64] | None:
    """Return one or several numbers as an array, [n] int64; None for None.

    Raises:
        ValueError: if a number is not a whole number from 0.
    """
    if wanted is None:
        return None
    numbers: list[Any]
    if isinstance(wanted, np.ndarray):
        numbers = list(wanted.ravel())
    elif isinstance(wanted, Collection) and not isinstance(wanted, str | bytes):
        numbers = list(wanted)
    else:
        numbers = [wanted]
    for number in numbers:
        if not _is_whole(number) or not 0 <= number < 2**63:
            raise ValueError(f"{name} has {number!r}, expected one or several whole numbers from 0")
    return np.array(numbers, np.int64)


def _tokens(
    cells: NDArray[np.int16],
    role: str | None,
    example: Example | None,
    row: int | None,
    col: int | None,
) -> NDArray[np.bool_]:
    """Select tokens by their cells, [n, 4]; the result is [n] bool."""
    shows_cell: NDArray[np.bool_] = cells[:, 1] >= 0
    if role == "text":
        return ~shows_cell
    pair = TEST_PAIR if example == "test" else example
    for column, wanted in enumerate((pair, None if role is None else ROLES.index(role), row, col)):
        if wanted is not None:
            shows_cell &= cells[:, column] == wanted
    return shows_cell


def _indexes(shards: Shards) -> Iterator[ShardIndex]:
    """Yield the indexes of all shards one by one, because memory may not hold them all."""
    return map(shards.index, range(len(shards.metadata.shards)))


def _ids(index: ShardIndex) -> Iterator[tuple[str, str]]:
    return zip(index.sample_ids, index.task_ids, strict=True)


def _check_names(shards: Shards, task: str | None, sample: str | None, source: str | None) -> None:
    """Raise ValueError if the dataset does not have a name, such as a misspelled one."""
    if (task, sample, source) == (None, None, None):
        return
    ids = [each for index in _indexes(shards) for each in _ids(index)]
    for what, wanted, known in (
        ("task", task, {task_id for _, task_id in ids}),
        ("sample", sample, {sample_id for sample_id, _ in ids}),
        ("source", source, {SampleName.of(*each).source for each in ids}),
    ):
        if wanted is not None and wanted not in known:
            some = get_close_matches(wanted, known, 3) or sorted(known)[:3]
            raise ValueError(
                f"the dataset has no {what} {wanted!r}, but {len(known)} others such as "
                f"{', '.join(map(repr, some))}; its folder errors/ lists rejected tasks"
            )
