"""Writing of a shard's prompts to their TFRecord file."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam

from activation_dataset.format import prompts_file
from activation_dataset.manifest import PromptsManifest
from activation_dataset.prompts import write_prompts
from transforms.extract_activations import ShardPrompts
from transforms.output_folder import OutputFolder
from transforms.resume import commit_file
from transforms.storage import storage_errors


def write_shard_prompts(shard: ShardPrompts, folder: OutputFolder) -> PromptsManifest:
    """Write the manifest of a shard's prompts, then their file."""
    with folder.file(prompts_file(shard.shard, shard.num_shards)) as file:
        with storage_errors(file.path):
            manifest = write_prompts(file.stream, shard.prompts, shard.shard, shard.num_shards)
        commit_file(folder, None, file, manifest, shard.num_shards)
    return manifest


@dataclass(eq=False)
class WritePrompts(beam.PTransform):
    """Write `ShardPrompts` to files in a claimed folder, and output their `PromptsManifest`."""

    folder: OutputFolder

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        return shards | "Write" >> beam.Map(write_shard_prompts, self.folder)
