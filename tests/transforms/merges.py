"""Ways in which a runner may combine elements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
from hypothesis import strategies as st


def combined(combine: beam.CombineFn, elements: Iterable[Any]) -> Any:
    """Combine elements one after another."""
    accumulator = combine.create_accumulator()
    for each in elements:
        accumulator = combine.add_input(accumulator, each)
    return combine.extract_output(accumulator)


@st.composite
def any_merge(draw: st.DrawFn, combine: beam.CombineFn, elements: list[Any]) -> Any:
    """Combine elements in any order, in any bundles, with any tree of merges."""
    accumulators = [combine.create_accumulator()]
    for each in draw(st.permutations(elements)):
        accumulators[-1] = combine.add_input(accumulators[-1], each)
        if draw(st.booleans()):
            accumulators.append(combine.create_accumulator())
    while len(accumulators) > 1:
        taken = draw(st.integers(2, len(accumulators)))
        merged = combine.merge_accumulators(accumulators[:taken])
        accumulators = draw(st.permutations([merged, *accumulators[taken:]]))
    return combine.extract_output(accumulators[0])
