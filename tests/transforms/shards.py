"""Shards as the extraction outputs them, for tests of the files written from them."""

from __future__ import annotations

from collections.abc import Sequence

from activation_dataset.manifest import LayerManifest
from activation_dataset.prompts import Prompt
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics
from tests.activation_dataset.synthetic import frames_of, make_prompts, make_rows, row_seed
from transforms.extract_activations import LayerBlock
from transforms.output_folder import OutputFolder
from transforms.write_layer import _WriteLayer

KIND = RecordKind("last", "float32", 4)
PROMPTS = make_prompts([3, 4, 5, 6])
NUM_SHARDS = 2


def blocks_of(
    site: Site, shard: int, prompts: Sequence[Prompt] = PROMPTS, sizes: Sequence[int] = ()
) -> list[LayerBlock]:
    """Return a shard's prompts with random vectors, in blocks of given sizes or in one block."""
    frames = tuple(frames_of(prompts, KIND))
    vectors = make_rows(prompts, KIND.pooling, KIND.hidden, row_seed(site, shard))
    blocks, start = [], 0
    for size in sizes or [len(prompts)]:
        end = start + size
        statistics = LayerStatistics.of_vectors(vectors[start:end])
        place = (shard, NUM_SHARDS, site, frames[start:end], vectors[start:end])
        blocks.append(LayerBlock(*place, statistics, "xla", end == len(prompts)))
        start = end
    return blocks


def write_blocks(
    folder: OutputFolder, site: Site, blocks: Sequence[LayerBlock]
) -> list[LayerManifest]:
    """Write blocks as a runner does in a bundle."""
    do_fn = _WriteLayer(folder, site, KIND)
    do_fn.start_bundle()
    try:
        for block in blocks:
            do_fn.process(block)
        manifests = [output.value for output in do_fn.finish_bundle()]
    finally:
        do_fn.teardown()
    return manifests
