import io
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from activation_dataset.format import prompts_file
from activation_dataset.prompts import write_prompts
from tests.activation_dataset.synthetic import make_prompts
from transforms.extract_activations import ShardPrompts
from transforms.output_folder import OutputFolder
from transforms.whole_file import OutputError
from transforms.write_prompts import WritePrompts, write_shard_prompts

SHARDS = [ShardPrompts(n, 2, tuple(make_prompts([3, 5], seed=n))) for n in range(2)]


def content_of(shard: ShardPrompts) -> bytes:
    stream = io.BytesIO()
    write_prompts(stream, shard.prompts, shard.shard, 2)
    return stream.getvalue()


def test_each_shard_is_a_file_and_a_manifest(tmp_path: Path):
    with beam.Pipeline("FnApiRunner") as pipeline:
        folder = OutputFolder.claim(str(tmp_path))
        manifests = pipeline | beam.Create(SHARDS) | WritePrompts(folder)
        expected = [write_prompts(io.BytesIO(), shard.prompts, shard.shard, 2) for shard in SHARDS]
        assert_that(manifests, equal_to(expected))
    for shard in SHARDS:
        assert (tmp_path / prompts_file(shard.shard, 2)).read_bytes() == content_of(shard)
    assert len(list(tmp_path.rglob("*.tfrecord*"))) == 2


def test_a_file_that_is_there_is_replaced(tmp_path: Path):
    path = tmp_path / prompts_file(0, 2)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    folder = OutputFolder.claim(str(tmp_path))
    first = write_shard_prompts(SHARDS[0], folder)
    assert path.read_bytes() == content_of(SHARDS[0])
    assert write_shard_prompts(SHARDS[0], folder) == first
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / prompts_file(0, 2)).mkdir(parents=True)
    (tmp_path / prompts_file(0, 2) / "in the way").touch()
    with pytest.raises(OutputError, match="prompts-00000-of-00002"):
        write_shard_prompts(SHARDS[0], OutputFolder.claim(str(tmp_path)))
    assert len(list((tmp_path / "prompts").iterdir())) == 1
