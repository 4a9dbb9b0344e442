"""Variants of an ARC task by symmetry, colors and order of the examples, drawn from a seed.

A variant is the same puzzle with all grids turned or reflected alike, all colors renamed alike and
the training pairs in another order. Its key, such as `d4=3&colors=0482615937&order=2-0-1`, ends
the ids of its samples and is enough to make the variant again.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from corpus.task import Grid, Pair, RejectedTask, Rejection, Task

COLORS = 10

# Distinct variants are equally likely. If a task has exactly as many as needed, the draws miss a
# given one with probability exp(-16).
_DRAWS_PER_VARIANT = 16
_MORE_DRAWS = 1000

_KEY = re.compile(r"d4=([0-7])&colors=([0-9]{10})&order=([0-9]+(?:-[0-9]+)*)")
_SAMPLE_ID = re.compile(r"(.*/[0-9]+)(?:\?([^/]*))?", re.DOTALL)


class AugmentationError(ValueError):
    """An invalid key or sample id, or the key of another task's variant."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Recipe of a variant.

    Attributes:
        d4: symmetry of the square, 0..7: transpose the grid if `d4 >= 4`, then rotate it
            counterclockwise by `d4 % 4` quarter turns.
        colors: permutation of 0..9; color `c` becomes `colors[c]`.
        order: permutation; training pair `i` of the variant is pair `order[i]` of the task.
    """

    d4: int
    colors: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def key(self) -> str:
        """Text form of the augmentation; `parse_key` is the inverse."""
        colors = "".join(map(str, self.colors))
        return f"d4={self.d4}&colors={colors}&order={'-'.join(map(str, self.order))}"


@dataclass(frozen=True, slots=True)
class AugmentationPlan:
    """Settings for drawing variants.

    Attributes:
        variants: number of variants of each task, including the task itself as the first.
        seed: seed of the draws.
        keep_background: True to leave color 0 unchanged.
    """

    variants: int
    seed: int
    keep_background: bool


def parse_key(key: str) -> Augmentation:
    """Return the augmentation with a key, or raise `AugmentationError`."""
    if match := _KEY.fullmatch(key):
        d4, colors, order = match.groups()
        found = Augmentation(int(d4), tuple(map(int, colors)), tuple(map(int, order.split("-"))))
        if all(sorted(p) == list(range(len(p))) for p in (found.colors, found.order)):
            return found
    raise AugmentationError(
        f"{key!r} is not the key of a variant, such as d4=3&colors=0482615937&order=2-0-1, where "
        "colors and order are permutations"
    )


def split_sample_id(sample_id: str) -> tuple[str, Augmentation | None]:
    """Return the id of the original sample and the augmentation, None for the original itself.

    Raises:
        AugmentationError: if `sample_id` is not the id of a task's sample.
    """
    match = _SAMPLE_ID.fullmatch(sample_id)
    if match is None:
        raise AugmentationError(
            f"{sample_id!r} is not the id of a task's sample; expected source#task_id/test_index, "
            "followed by ?key for a variant"
        )
    original, key = match.groups()
    return original, None if key is None else parse_key(key)


def apply(task: Task, augmentation: Augmentation) -> Task:
    """Return a variant of a task.

    Raises:
        AugmentationError: if the augmentation has another number of training pairs than the task.
    """
    if len(task.train) != len(augmentation.order):
        raise AugmentationError(
            f"{task.source}, task {task.task_id}: {len(task.train)} training pairs, but "
            f"{augmentation.key} orders {len(augmentation.order)}; it belongs to another task"
        )

    def changed(pair: Pair) -> Pair:
        output = None if pair.output is None else _apply_to_grid(pair.output, augmentation)
        return Pair(_apply_to_grid(pair.input, augmentation), output)

    train = tuple(changed(task.train[index]) for index in augmentation.order)
    test = tuple(map(changed, task.test))
    return replace(task, train=train, test=test, augmentation=augmentation.key)


def _apply_to_grid(grid: Grid, augmentation: Augmentation) -> Grid:
    table = bytes(augmentation.colors).ljust(256)
    rows: Sequence[Sequence[int]] = grid
    if augmentation.d4 >= 4:
        rows = list(zip(*rows, strict=True))
    for _ in range(augmentation.d4 % 4):
        rows = list(zip(*rows, strict=True))[::-1]
    return tuple(tuple(bytes(row).translate(table)) for row in rows)


def original_cell(
    augmentation: Augmentation, shape: tuple[int, int], cell: tuple[int, int]
) -> tuple[int, int]:
    """Map a cell of a variant's grid back to the grid of the original task.

    Args:
        augmentation: augmentation of the variant.
        shape: height and width of the variant's grid.
        cell: row and column in the variant's grid.

    Returns:
        Row and column in the original grid.
    """
    (height, width), (row, column) = shape, cell
    for _ in range(augmentation.d4 % 4):
        row, column = column, height - 1 - row
        height, width = width, height
    return (column, row) if augmentation.d4 >= 4 else (row, column)


def augment(task: Task, plan: AugmentationPlan) -> Iterator[Task | RejectedTask]:
    """Yield the task itself and then its variants, all with different prompts.

    The variants depend only on the plan and the task. With otherwise equal settings, a plan for
    fewer variants yields a prefix of a plan for more. If symmetric grids or few colors leave too
    few variants, the last item is a `RejectedTask` that counts the missing samples.
    """
    yield task
    seen = _digests(task)
    found = 1
    draws = _draws(task, plan)
    for _ in range(_DRAWS_PER_VARIANT * plan.variants + _MORE_DRAWS):
        if found >= plan.variants:
            return
        variant = apply(task, next(draws))
        digests = _digests(variant)
        if seen.isdisjoint(digests):
            seen |= digests
            found += 1
            yield variant
    detail = (
        f"--augment asks for {plan.variants} variants, but only {found} with different prompts "
        "were found, and only these are used"
    )
    rejected = Rejection("too_few_variants", detail).of(task.source, task.task_id)
    samples = (plan.variants - found) * len(task.test)
    yield replace(rejected, kind="sample", samples=samples)


def _draws(task: Task, plan: AugmentationPlan) -> Iterator[Augmentation]:
    # `random()` is the only method whose values are the same in every version of Python.
    key = f"{plan.seed}/{task.source}#{task.task_id}"
    draw = random.Random(key.encode(errors="surrogatepass")).random
    kept = [0] if plan.keep_background else []
    while True:
        d4 = int(8 * draw())
        colors = sorted(range(len(kept), COLORS), key=lambda _: draw())
        order = sorted(range(len(task.train)), key=lambda _: draw())
        yield Augmentation(d4, (*kept, *colors), tuple(order))


def _digests(task: Task) -> set[bytes]:
    train = tuple((pair.input, pair.output) for pair in task.train)
    shown = (repr((train, index, pair.input)) for index, pair in enumerate(task.test))
    return {hashlib.blake2b(text.encode(), digest_size=16).digest() for text in shown}
