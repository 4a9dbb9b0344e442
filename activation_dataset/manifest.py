"""Manifests of written files, and the shards that metadata.json lists."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from activation_dataset.canonical_json import read_sealed, sealed_text
from activation_dataset.fields import from_json, to_json
from activation_dataset.format import data_file
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics

_DIGEST = "manifest_sha256"


@dataclass(frozen=True)
class FileEntry:
    """One file, as metadata.json lists it: path in the dataset's folder with "/", size, and CRC32C
    of the whole file in base64, as Cloud Storage shows it."""

    path: str
    bytes: int
    crc32c: str


class _Sealed:
    """Conversion of a manifest to the content of its file and back."""

    def to_bytes(self) -> bytes:
        """The content of the manifest's file. `from_bytes` restores the same bits."""
        return sealed_text(to_json(self), _DIGEST).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Restore a manifest from the result of `to_bytes`. Raises FieldError for anything else."""
        result: Self = from_json(cls, read_sealed(content, _DIGEST), "")
        return result


@dataclass(frozen=True)
class LayerManifest(_Sealed):
    """Content of one layer file: one site of one shard.

    Attributes:
        shard: number of the shard.
        samples, tokens, vectors: records in the file, tokens of all its prompts, and vectors.
        order: digest of the sample ids in the order of the file, see `sample_order`.
        ops: implementation and device that computed the vectors, such as "xla on cpu".
        site, file, statistics: the site, the file, and the statistics of the vectors.
    """

    shard: int
    samples: int
    tokens: int
    vectors: int
    order: str
    ops: str
    site: Site
    file: FileEntry
    statistics: LayerStatistics


@dataclass(frozen=True)
class PromptsManifest(_Sealed):
    """Content of one file of prompts; attributes as in LayerManifest."""

    shard: int
    samples: int
    tokens: int
    order: str
    file: FileEntry


Manifest = LayerManifest | PromptsManifest


@dataclass(frozen=True)
class Shard:
    """One shard in all its sites.

    Attributes:
        shard: number of the shard.
        samples, tokens, vectors: its samples, tokens of all their prompts, and vectors of one site.
        prompts, files: the file of prompts, and the layer file of each site.
    """

    shard: int
    samples: int
    tokens: int
    vectors: int
    prompts: FileEntry
    files: Mapping[Site, FileEntry]

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """The layer files and the file of prompts."""
        return (*self.files.values(), self.prompts)


def sample_order(sample_ids: Iterable[str]) -> str:
    """SHA-256, in hex, of sample ids in order. Files with the same value have the same samples."""
    digest = hashlib.sha256()
    for sample_id in sample_ids:
        encoded = sample_id.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def shards_of(
    manifests: Iterable[Manifest], sites: Sequence[Site], num_shards: int
) -> tuple[Shard, ...]:
    """Put the manifests of a complete dataset, given in any order, in order.

    Each shard has a manifest for each site, and one for its prompts.

    Raises:
        ValueError: a file is missing, written twice or unknown, or the files of a shard differ in
            their samples or in the order of these.
    """
    found: dict[str, Manifest] = {}
    for manifest in manifests:
        if manifest.file.path in found:
            raise ValueError(f"{manifest.file.path} was written twice")
        found[manifest.file.path] = manifest
    shards = []
    for shard in range(num_shards):
        paths = [data_file(site, shard, num_shards) for site in (*sites, None)]
        for path in paths:
            if path not in found:
                raise ValueError(f"{path} was not written")
        *layers, prompts = (found.pop(path) for path in paths)
        for manifest in layers:
            _check_same_samples(manifest, prompts)
        first, *others = (each for each in layers if isinstance(each, LayerManifest))
        vectors = first.vectors
        for other in others:
            if other.vectors != vectors:
                raise ValueError(
                    f"{other.file.path} has {other.vectors} vectors, {first.file.path} {vectors}"
                )
        files = {site: each.file for site, each in zip(sites, layers, strict=True)}
        shards.append(Shard(shard, prompts.samples, prompts.tokens, vectors, prompts.file, files))
    if found:
        raise ValueError(
            f"{min(found)} does not belong to shards 0..{num_shards - 1} of sites {list(sites)}"
        )
    return tuple(shards)


def _check_same_samples(manifest: Manifest, prompts: Manifest) -> None:
    if (manifest.samples, manifest.tokens) != (prompts.samples, prompts.tokens):
        raise ValueError(
            f"{manifest.file.path} has {manifest.samples} samples and {manifest.tokens} tokens, "
            f"{prompts.file.path} {prompts.samples} and {prompts.tokens}"
        )
    if manifest.order != prompts.order:
        raise ValueError(
            f"{manifest.file.path} has the samples of {prompts.file.path} in another order, or "
            "other samples"
        )
