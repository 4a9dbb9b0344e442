"""The prompts of a shard to their TFRecord file, beside those of the layers."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam

from activation_dataset.format import prompts_file
from activation_dataset.manifest import PromptsManifest
from activation_dataset.prompts import write_prompts
from transforms.extract_activations import ShardPrompts
from transforms.output_folder import OutputFolder
from transforms.whole_file import store_errors


def write_shard_prompts(shard: ShardPrompts, folder: OutputFolder) -> PromptsManifest:
    """Writes the file, whole, whether or not it is there: that costs less than to read it.

    Raises:
      ClaimLostError: if the folder is another run's.
      OutputError: if it cannot be written.
    """
    file = folder.file(prompts_file(shard.shard, shard.num_shards))
    try:
        with store_errors(file.path):
            manifest = write_prompts(file.stream, shard.prompts, shard.shard, shard.num_shards)
    except BaseException:
        file.discard()
        raise
    file.commit(manifest.file.crc32c)
    return manifest


@dataclass(eq=False)
class WritePrompts(beam.PTransform):
    """``ShardPrompts`` to files; gives the ``PromptsManifest`` of each."""

    folder: OutputFolder

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        return shards | "Write" >> beam.Map(write_shard_prompts, self.folder)
