"""Variants of an ARC task by symmetry, colours and order of the examples: seeded and reversible.

A variant is the same puzzle seen otherwise: all grids turned or reflected alike, all colours
renamed alike, the training pairs in another order. Its key, such as
`d4=3&colors=0482615937&order=2-0-1`, ends the ids of its samples, and gives the variant back
without the seed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from corpus.task import Grid, Pair, RejectedTask, Task

SYMMETRIES = 8
COLORS = 10
BACKGROUND = 0

# Where half of a task's variants look alike, or more, twice as many must be drawn, or more. A task
# whose grids have every symmetry of the square shows each of its variants eight times.
_DRAWS_PER_VARIANT = 16
_MORE_DRAWS = 10_000

_KEY = re.compile(r"d4=([0-7])&colors=([0-9]{10})&order=([0-9]+(?:-[0-9]+)*)")
_SAMPLE_ID = re.compile(r"(.*/[0-9]+)(?:\?([^/]*))?", re.DOTALL)


class AugmentationError(ValueError):
    """A key or a sample id that is not one of a variant, or not one of this task."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What makes a variant of a task.

    Attributes:
        d4: symmetry of the square, 0..7: from 4 on the grid is transposed first; then it is turned
            anticlockwise by `d4 % 4` quarter turns.
        colors: the colour that takes the place of colour 0, 1, ..., 9; a permutation.
        order: the training pairs of the variant as their numbers in the task; a permutation.

    Raises:
        AugmentationError: not a symmetry, or not a permutation.
    """

    d4: int
    colors: tuple[int, ...]
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.d4 < SYMMETRIES:
            raise AugmentationError(f"d4 is {self.d4}; the symmetries of the square are 0 to 7")
        if sorted(self.colors) != list(range(COLORS)):
            raise AugmentationError(
                f"colors is {self.colors}; each of 0 to 9 must stand in it once"
            )
        if sorted(self.order) != list(range(len(self.order))):
            raise AugmentationError(
                f"order is {self.order}; each of 0 to {len(self.order) - 1} must stand in it once"
            )

    @property
    def key(self) -> str:
        """`parse_key` is its inverse."""
        colors = "".join(map(str, self.colors))
        return f"d4={self.d4}&colors={colors}&order={'-'.join(map(str, self.order))}"

    @property
    def inverse(self) -> Augmentation:
        """The one that leads back."""
        # A reflection undoes itself.
        d4 = self.d4 if self.d4 >= 4 else -self.d4 % 4
        return Augmentation(d4, _inverse(self.colors), _inverse(self.order))


@dataclass(frozen=True, slots=True)
class AugmentationPlan:
    """How many variants a task gets, and which.

    Attributes:
        variants: of each task, the task as it is being one of them.
        seed: another seed, other variants.
        keep_background: whether colour 0 stays as it is.
    """

    variants: int
    seed: int
    keep_background: bool


def identity(train_pairs: int) -> Augmentation:
    """The one that changes nothing, for a task of that many training pairs."""
    return Augmentation(0, tuple(range(COLORS)), tuple(range(train_pairs)))


def parse_key(key: str) -> Augmentation:
    """The augmentation that has a key.

    Raises:
        AugmentationError: it is no such key.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise AugmentationError(
            f"{key!r} is not the key of a variant, such as d4=3&colors=0482615937&order=2-0-1"
        )
    d4, colors, order = match.groups()
    return Augmentation(int(d4), tuple(map(int, colors)), tuple(map(int, order.split("-"))))


def split_sample_id(sample_id: str) -> tuple[str, Augmentation | None]:
    """The id of the sample as its file has it, and the augmentation; None if it is that sample.

    Raises:
        AugmentationError: it is not the id of a task's sample.
    """
    match = _SAMPLE_ID.fullmatch(sample_id)
    if match is None:
        raise AugmentationError(
            f"{sample_id!r} is not the id of a task's sample, source#task_id/test_index, with "
            "?key behind it for a variant"
        )
    original, key = match.groups()
    return original, None if key is None else parse_key(key)


def apply(task: Task, augmentation: Augmentation) -> Task:
    """The variant of a task.

    Raises:
        AugmentationError: the task has another number of training pairs.
    """
    if len(task.train) != len(augmentation.order):
        raise AugmentationError(
            f"{task.source}, task {task.task_id}: {len(task.train)} training pairs; the order "
            f"{augmentation.key} is of {len(augmentation.order)}"
        )
    return replace(
        task,
        train=tuple(_apply_pair(task.train[index], augmentation) for index in augmentation.order),
        test=tuple(_apply_pair(pair, augmentation) for pair in task.test),
        augmentation=augmentation.key,
    )


def invert(variant: Task) -> Task:
    """The task as its file has it, from any of its variants."""
    if not variant.augmentation:
        return variant
    return replace(apply(variant, parse_key(variant.augmentation).inverse), augmentation="")


def apply_grid(grid: Grid, augmentation: Augmentation) -> Grid:
    """A grid as it is in the variant; with `augmentation.inverse`, as it was."""
    table = bytes(augmentation.colors).ljust(256)
    rows: Sequence[Sequence[int]] = grid
    if augmentation.d4 >= 4:
        rows = list(zip(*rows, strict=True))
    for _ in range(augmentation.d4 % 4):
        rows = list(zip(*rows, strict=True))[::-1]
    return tuple(tuple(bytes(row).translate(table)) for row in rows)


def original_place(
    augmentation: Augmentation, shape: tuple[int, int], place: tuple[int, int]
) -> tuple[int, int]:
    """Where in the task's grid the cell is that stands at a place of the variant's grid.

    Args:
        shape: rows and columns of the variant's grid.
        place: row and column in it.
    """
    (height, width), (row, column) = shape, place
    for _ in range(augmentation.d4 % 4):
        row, column = column, height - 1 - row
        height, width = width, height
    return (column, row) if augmentation.d4 >= 4 else (row, column)


def augment(task: Task, plan: AugmentationPlan) -> Iterator[Task | RejectedTask]:
    """The task as it is, then its variants, all with different prompts.

    They follow from the plan and the task alone, and a plan of fewer variants gives the first of
    them. Lazy, but for a digest of each variant. A task that has too few, since its grids are
    symmetric or have few colours, gives those it has and at last a `RejectedTask` that says so.
    """
    seen = _digests(task)
    yield task
    found = 1
    draws = _DRAWS_PER_VARIANT * plan.variants + _MORE_DRAWS
    for augmentation in islice(_candidates(task, plan), draws):
        if found >= plan.variants:
            return
        variant = apply(task, augmentation)
        digests = _digests(variant)
        if seen.isdisjoint(digests):
            seen |= digests
            found += 1
            yield variant
    if found < plan.variants:
        yield RejectedTask(
            task.source,
            task.task_id,
            "too_few_variants",
            f"{task.source}, task {task.task_id}: {plan.variants} variants are asked for and "
            f"{found} are used, since no others were found whose prompts differ; the task itself "
            "is not lost",
        )


def _candidates(task: Task, plan: AugmentationPlan) -> Iterator[Augmentation]:
    """All that could look different, each once, in the order that the seed gives them.

    Colours that no grid has would change nothing, so that what is drawn is where the others go.
    """
    shown = [pair.input for pair in (*task.train, *task.test)]
    shown += [pair.output for pair in task.train if pair.output is not None]
    present = sorted({cell for grid in shown for row in grid for cell in row})
    free = list(range(COLORS))
    if plan.keep_background:
        free.remove(BACKGROUND)
        present = [color for color in present if color != BACKGROUND]
    renamings = math.perm(len(free), len(present))
    orders = math.factorial(len(task.train))
    base = f"{plan.seed}/{task.source}#{task.task_id}"
    for number in _shuffled(SYMMETRIES * orders * renamings, base):
        number, d4 = divmod(number, SYMMETRIES)
        number, order = divmod(number, orders)
        colors = _renaming(present, free, _arrangement(free, len(present), number))
        places = list(range(len(task.train)))
        yield Augmentation(d4, colors, _arrangement(places, len(places), order))


def _shuffled(count: int, key: str) -> Iterator[int]:
    """0..count - 1, each once, in an order that follows from the key; memory as far as it is read.

    Fisher and Yates' shuffle, of which only the places that were moved are held.
    """
    moved: dict[int, int] = {}
    for place in range(count):
        digest = hashlib.blake2b(f"{key}/{place}".encode(errors="surrogatepass"), digest_size=32)
        other = place + int.from_bytes(digest.digest(), "big") % (count - place)
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)


def _arrangement(items: Sequence[int], length: int, number: int) -> tuple[int, ...]:
    """One of the arrangements of `length` of the items, by its number from 0."""
    rest = list(items)
    chosen = []
    for _ in range(length):
        number, index = divmod(number, len(rest))
        chosen.append(rest.pop(index))
    return tuple(chosen)


def _renaming(present: list[int], free: list[int], names: Sequence[int]) -> tuple[int, ...]:
    """The permutation that gives these names; colours that are not present take what is left."""
    colors = list(range(COLORS))
    for color, name in zip(present, names, strict=True):
        colors[color] = name
    absent = [color for color in free if color not in present]
    left = [color for color in free if color not in names]
    for color, name in zip(absent, left, strict=True):
        colors[color] = name
    return tuple(colors)


def _digests(task: Task) -> set[bytes]:
    """A digest of all that the prompt of each test input shows."""
    shown = hashlib.blake2b(digest_size=16)
    for pair in task.train:
        shown.update(_content(pair.input) + _content(pair.output or ()))
    digests = set()
    for index, pair in enumerate(task.test):
        whole = shown.copy()
        whole.update(_content(pair.input) + index.to_bytes(4, "big"))
        digests.add(whole.digest())
    return digests


def _content(grid: Grid) -> bytes:
    cells = b"".join(map(bytes, grid))
    return len(grid).to_bytes(4, "big") + len(cells).to_bytes(4, "big") + cells


def _apply_pair(pair: Pair, augmentation: Augmentation) -> Pair:
    output = pair.output
    return Pair(
        apply_grid(pair.input, augmentation),
        None if output is None else apply_grid(output, augmentation),
    )


def _inverse(permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))
