from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pvalue import TaggedOutput

from activation_dataset.prompts import Prompt
from activation_dataset.record import frame_record
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics
from beam_pipeline.failures import explained_by
from qwen import extractor as extractor_module
from qwen.extractor import open_extractor
from qwen.settings import ExtractorSettings
from tests.activation_dataset.synthetic import text_prompt
from tests.conftest import COMPILED
from transforms.assign_shards import ShardPlan, fingerprint, plan_shards
from transforms.extract_activations import (
    FINISHED,
    PROMPTS,
    LayerBlock,
    _Extract,
    extract_shard,
)
from transforms.output_folder import OutputFolder
from transforms.storage import delete, join
from transforms.write_layer import _WriteLayer
from transforms.write_prompts import write_shard_prompts

SITES: tuple[Site, ...] = (0, 2)


def settings(pooling: Any = "last") -> ExtractorSettings:
    return ExtractorSettings(
        *("random:tiny", (0, 2)),
        pooling=pooling,
        compute_dtype="float32",
        batch_size=1,
        compile_cache=COMPILED.name,
    )


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Prompts of very different lengths that need more than one step of 512 slots."""
    lengths = [1, 300, 2, 40, 512, 7, 100, 250, 33]
    generator = np.random.default_rng(0)
    return [
        text_prompt(f"a.json#{n}/0", f"{n}", generator.integers(0, 1000, length, dtype=np.int32))
        for n, length in enumerate(lengths)
    ]


def plan_of(prompts: Sequence[Prompt]) -> ShardPlan:
    """Return a plan with one shard."""
    return plan_shards(np.concatenate([fingerprint(prompt) for prompt in prompts]), 100)


@pytest.mark.parametrize("pooling", ["last", "none"])
def test_each_sample_gets_its_own_vectors_in_blocks_of_all_sites(prompts, pooling: str):
    extractor = open_extractor(settings(pooling))
    kind = extractor.settings.record_kind(64)
    by_id = {prompt.sample_id: prompt for prompt in prompts}
    alone = {}
    for prompt in prompts:
        (captured,) = extractor.extract([prompt.token_ids])
        alone[prompt.sample_id] = captured.vectors
    by_site: dict[Site, list[LayerBlock]] = defaultdict(list)
    for block in extract_shard(5, 6, prompts, extractor):
        assert (block.shard, block.num_shards, block.ops) == (5, 6, extractor.ops)
        by_site[block.site].append(block)
        ends = np.cumsum([frame.vectors for frame in block.frames])
        for frame, vectors in zip(block.frames, np.split(block.vectors, ends[:-1]), strict=True):
            assert frame == frame_record(kind.sample(by_id[frame.sample_id]), kind)
            expected = alone[frame.sample_id][block.site]
            np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
        expected_statistics = LayerStatistics.of_vectors(block.vectors)
        assert block.statistics.count == expected_statistics.count
        np.testing.assert_allclose(block.statistics.mean, expected_statistics.mean, atol=1e-6)
    assert set(by_site) == set(SITES)
    for ours in by_site.values():
        assert len(ours) > 1
        assert [block.is_last for block in ours] == [False] * (len(ours) - 1) + [True]
        found = Counter(frame.sample_id for block in ours for frame in block.frames)
        assert found == Counter(prompt.sample_id for prompt in prompts)


def write(folder: OutputFolder, outputs: list[TaggedOutput]) -> Counter[str]:
    """Write the outputs of the extraction, and count them by tag."""
    writers: dict[str, _WriteLayer] = {}
    for output in outputs:
        if output.tag == PROMPTS:
            write_shard_prompts(output.value, folder)
        elif output.tag != FINISHED:
            kind = settings().record_kind(64)
            writer = writers.setdefault(output.tag, _WriteLayer(folder, output.value.site, kind))
            writer.process(output.value)
    for writer in writers.values():
        list(writer.finish_bundle())
    return Counter(output.tag for output in outputs)


def test_a_shard_is_resumed_and_a_complete_one_needs_no_model(
    prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, plan = OutputFolder.claim(str(tmp_path)), plan_of(prompts)
    do_fn = _Extract(settings(), folder.path)
    first = write(folder, list(do_fn.process((0, prompts), plan)))
    assert set(first) == {"layer_0", "layer_2", PROMPTS}

    delete(join(folder.path, "layer_2/activations-00000-of-00001.tfrecord"))
    again = write(folder, list(do_fn.process((0, prompts), plan)))
    assert (set(again), again[FINISHED]) == ({"layer_2", FINISHED}, 2)

    monkeypatch.setattr(extractor_module, "open_extractor", None)
    fresh = _Extract(settings(), folder.path)
    outputs = list(fresh.process((0, prompts), plan))
    assert [output.tag for output in outputs] == [FINISHED] * 3


def keyed_block(_: int) -> tuple[int, LayerBlock]:
    vectors, statistics = np.empty((0, 4), np.float32), LayerStatistics.empty(4)
    return 0, LayerBlock(0, 1, 10, (), vectors, statistics, "xla", True)


def test_a_runner_that_materializes_blocks_is_told_on_the_first_one():
    pipeline = beam.Pipeline("FnApiRunner")
    blocks = pipeline | beam.Create([1]) | "Extract" >> beam.Map(keyed_block)
    _ = blocks | "Materialize" >> beam.GroupByKey()
    with pytest.raises(Exception, match="decoding") as error:
        pipeline.run()
    explanation = explained_by(error.value) or ""
    assert "layer 10" in explanation
    assert "materializes between extraction and writing" in explanation
