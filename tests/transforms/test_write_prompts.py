from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from activation_dataset.format import manifest_file, prompts_file
from activation_dataset.manifest import PromptsManifest
from activation_dataset.prompts import read_prompts
from tests.activation_dataset.synthetic import make_prompts
from transforms.extract_activations import ShardPrompts
from transforms.output_folder import OutputFolder
from transforms.storage import OutputError
from transforms.write_prompts import WritePrompts, write_shard_prompts

SHARDS = [ShardPrompts(n, 2, tuple(make_prompts([3, 5], seed=n))) for n in range(2)]


def test_each_shard_is_a_file_and_a_manifest(tmp_path: Path):
    with beam.Pipeline("FnApiRunner") as pipeline:
        written = pipeline | beam.Create(SHARDS) | WritePrompts(OutputFolder.claim(str(tmp_path)))
        places = written | beam.Map(lambda manifest: manifest.file.path)
        assert_that(places, equal_to([prompts_file(shard.shard, 2) for shard in SHARDS]))
    for shard in SHARDS:
        content = (tmp_path / manifest_file(None, shard.shard, 2)).read_bytes()
        path = tmp_path / PromptsManifest.from_bytes(content).file.path
        with path.open("rb") as stream:
            found = [prompt.sample_id for prompt in read_prompts(stream, path.name)]
        assert found == [prompt.sample_id for prompt in shard.prompts]


def test_a_file_that_exists_is_replaced(tmp_path: Path):
    path = tmp_path / prompts_file(0, 2)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    manifest = write_shard_prompts(SHARDS[0], OutputFolder.claim(str(tmp_path)))
    assert path.stat().st_size == manifest.file.bytes
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / prompts_file(0, 2) / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match="prompts-00000-of-00002"):
        write_shard_prompts(SHARDS[0], OutputFolder.claim(str(tmp_path)))
    assert len(list((tmp_path / "prompts").iterdir())) == 1
