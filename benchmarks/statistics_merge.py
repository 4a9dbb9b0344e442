"""Peak memory of merging the statistics of many shards that arrive in random order.

python -m benchmarks.statistics_merge
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from activation_dataset.norms import NormHistogram
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from transforms.combine_metadata import SHARDS_OF_A_GROUP


def shard_statistics(rng: np.random.Generator, hidden: int) -> LayerStatistics:
    """Return random statistics of a shard of 512 vectors."""
    mean, variance = rng.standard_normal(hidden), rng.random(hidden)
    norms = NormHistogram.of(np.exp(rng.standard_normal(512)))
    return LayerStatistics(512, 0, mean, variance, 1.0, 2.0, 3.0, norms)


def groups(rng: np.random.Generator, shards: int, size: int) -> Iterator[np.ndarray]:
    """Yield the shards of each group, both in random order."""
    for group in rng.permutation(-(-shards // size)).tolist():
        yield rng.permutation(np.arange(group * size, min(shards, (group + 1) * size)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics_merge")
    parser.add_argument("--shards", type=int, default=20_000)
    parser.add_argument("--sites", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--group", type=int, default=SHARDS_OF_A_GROUP)
    options = parser.parse_args(arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    rng = np.random.default_rng(0)
    whole = [OrderedMerge() for _ in range(options.sites)]
    for shards in groups(rng, options.shards, options.group):
        merges = [OrderedMerge() for _ in range(options.sites)]
        for shard in shards.tolist():
            for merge in merges:
                merge.add(shard, shard_statistics(rng, options.hidden))
        for merge, group in zip(whole, merges, strict=True):
            merge.merge(group)
    counts = {merge.result(options.shards).count for merge in whole}
    assert counts == {512 * options.shards}, counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{options.shards:,} shards x {options.sites} sites x {options.hidden:,} elements, in "
        f"groups of {options.group}: {peak / 1024:,.0f} MiB at most, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
