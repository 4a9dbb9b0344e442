"""What an interrupted run left: layer files that are whole, verified and not trusted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from activation_dataset.format import Sample, shard_file
from activation_dataset.manifest import LayerManifest
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.verifying.layer_file import (
    ExpectedRecords,
    LayerFileError,
    read_samples,
    verify_file,
)
from transforms.whole_file import join

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedLayers:
    """The layer files of a shard that are there and sound, all with the same samples in one order.

    Attributes:
      order: the sample ids of each file; empty if there is none.
      manifests: site to manifest, recomputed from the file's bytes.
    """

    order: tuple[str, ...]
    manifests: Mapping[Site, LayerManifest]


def finished_layers(
    output_dir: str,
    shard: int,
    num_shards: int,
    layers: Sequence[Site],
    samples: Sequence[Sample],
    kind: RecordKind,
) -> FinishedLayers:
    """Reads every layer file of a shard that is there, in full; damaged ones are left out.

    Args:
      samples: of the shard, in any order.
    """
    records: ExpectedRecords | None = None
    manifests: dict[Site, LayerManifest] = {}
    for layer in layers:
        path = join(output_dir, shard_file(layer, shard, num_shards))
        if not FileSystems.exists(path):
            continue
        try:
            with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
                expected = records or _records(stream, path, samples, kind)
                manifests[layer] = verify_file(stream, layer, shard, num_shards, expected)
        except (LayerFileError, OSError, BeamIOError) as error:
            LOGGER.warning("%s is written again: %s", path, error)
            continue
        records = expected
    order = tuple(sample.sample_id for sample in records.samples) if records else ()
    return FinishedLayers(order, manifests)


def _records(
    stream: BinaryIO, path: str, samples: Sequence[Sample], kind: RecordKind
) -> ExpectedRecords:
    """The samples of a file in its order, if they are just those."""
    found = read_samples(stream, path, kind)
    by_id = {sample.sample_id: sample for sample in samples}
    if len(found) != len(by_id) or {sample.sample_id: sample for sample in found} != by_id:
        raise LayerFileError(path, ["its samples are not those of the shard"])
    return ExpectedRecords(kind, found)
