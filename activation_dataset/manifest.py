"""Manifests of written files, and the shards in metadata.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from activation_dataset.canonical_json import read_sealed, sealed_text
from activation_dataset.fields import from_json, to_json
from activation_dataset.format import METADATA_FILE, data_file
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics

_DIGEST = "manifest_sha256"


@dataclass(frozen=True)
class FileEntry:
    """Entry of one file in metadata.json.

    Attributes:
        path: path in the dataset's folder, with "/".
        bytes: size.
        crc32c: CRC32C of the whole file in base64, as Cloud Storage shows it.
    """

    path: str
    bytes: int
    crc32c: str

    def difference(self, size: int, crc32c: str) -> str:
        """Describe how a file of this size and CRC32C differs from the entry; "" if it does not."""
        if size != self.bytes:
            return f"has {size} bytes, {METADATA_FILE} says {self.bytes}"
        if crc32c != self.crc32c:
            return f"has CRC32C {crc32c}, {METADATA_FILE} says {self.crc32c}"
        return ""


class _Sealed:
    """Conversion between a manifest and the content of its file."""

    def to_bytes(self) -> bytes:
        """Return the content of the manifest's file. `from_bytes` restores the same bits."""
        return sealed_text(to_json(self), _DIGEST).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Restore a manifest from the result of `to_bytes`.

        Raises:
            FieldError: if `to_bytes` did not write this content.
        """
        result: Self = from_json(cls, read_sealed(content, _DIGEST), "")
        return result


@dataclass(frozen=True)
class LayerManifest(_Sealed):
    """Content of one layer file: one site of one shard.

    Attributes:
        shard: number of the shard.
        samples: number of records in the file.
        tokens: number of tokens of all prompts.
        vectors: number of vectors.
        order: digest of the sample ids in the order of the file, see `sample_order`.
        ops: implementation and device that computed the vectors, such as "xla on cpu".
        site: site of the vectors.
        file: entry of the file.
        statistics: statistics of the vectors.
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
    """Content of one file of prompts. `LayerManifest` describes the attributes."""

    shard: int
    samples: int
    tokens: int
    order: str
    file: FileEntry


Manifest = LayerManifest | PromptsManifest


@dataclass(frozen=True)
class Shard:
    """All files of one shard.

    Attributes:
        shard: number of the shard.
        samples: number of samples.
        tokens: number of tokens of all prompts.
        vectors: number of vectors of one site.
        prompts: entry of the file of prompts.
        files: entry of the layer file of each site.
    """

    shard: int
    samples: int
    tokens: int
    vectors: int
    prompts: FileEntry
    files: Mapping[Site, FileEntry]

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """Entries of the layer files and of the file of prompts."""
        return (*self.files.values(), self.prompts)


def sample_order(sample_ids: Iterable[str]) -> str:
    """Return the SHA-256, in hex, of sample ids in order.

    Files with equal digests have the same samples in the same order.
    """
    digest = hashlib.sha256()
    for sample_id in sample_ids:
        encoded = sample_id.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def shards_of(
    manifests: Iterable[Manifest], sites: Sequence[Site], num_shards: int
) -> tuple[Shard, ...]:
    """Return the shards of a complete dataset, in order.

    Args:
        manifests: one manifest for each site and one for the prompts of each shard, in any order.
        sites: all sites.
        num_shards: number of shards.

    Raises:
        ValueError: if a file is missing, unknown or was written twice, or the files of a shard
            differ in their samples or in the order of the samples.
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
                    f"{other.file.path} has {other.vectors} vectors, but {first.file.path} has "
                    f"{vectors}"
                )
        files = {site: each.file for site, each in zip(sites, layers, strict=True)}
        shards.append(Shard(shard, prompts.samples, prompts.tokens, vectors, prompts.file, files))
    if found:
        raise ValueError(
            f"{min(found)} does not belong to shards 0..{num_shards - 1} of the sites {list(sites)}"
        )
    return tuple(shards)


def _check_same_samples(manifest: Manifest, prompts: Manifest) -> None:
    if (manifest.samples, manifest.tokens) != (prompts.samples, prompts.tokens):
        raise ValueError(
            f"{manifest.file.path} has {manifest.samples} samples and {manifest.tokens} tokens, "
            f"but {prompts.file.path} has {prompts.samples} and {prompts.tokens}"
        )
    if manifest.order != prompts.order:
        raise ValueError(
            f"the samples of {manifest.file.path}, or their order, differ from {prompts.file.path}"
        )
