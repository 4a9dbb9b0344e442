"""Manifests of written files, and the shards that metadata.json lists."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from activation_dataset.canonical_json import Json, read_sealed, sealed_text
from activation_dataset.fields import FieldError, Fields
from activation_dataset.format import data_file
from activation_dataset.sites import Site, forward_order, parse_site
from activation_dataset.statistics import LayerStatistics

_DIGEST = "manifest_sha256"


@dataclass(frozen=True)
class FileEntry:
    """One file, as metadata.json lists it.

    Attributes:
        path: relative to the dataset's folder, with "/".
        bytes: size of the file.
        crc32c: of the whole file, in base64 as Cloud Storage shows it.
    """

    path: str
    bytes: int
    crc32c: str

    def to_json(self) -> dict[str, Json]:
        """Values for json."""
        return {"path": self.path, "bytes": self.bytes, "crc32c": self.crc32c}

    @classmethod
    def from_json(cls, value: object, where: str) -> FileEntry:
        """Read the result of `to_json`; errors call it `where`."""
        fields = Fields(value, where)
        result = cls(fields.text("path"), fields.integer("bytes"), fields.text("crc32c"))
        fields.done()
        return result


@dataclass(frozen=True)
class LayerManifest:
    """Content of one layer file: one site of one shard.

    Attributes:
        shard: number of the shard.
        samples: records in the file.
        tokens: tokens of all its prompts.
        vectors: vectors in the file.
        order: digest of the sample ids in the order of the file, see `sample_order`.
        ops: implementation that computed the vectors, such as "xla".
        site: the site.
        file: the file.
        statistics: of the vectors.
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

    def to_bytes(self) -> bytes:
        """The content of the manifest's file. `from_bytes` restores the same bits."""
        value = {
            "shard": self.shard,
            "samples": self.samples,
            "tokens": self.tokens,
            "vectors": self.vectors,
            "order": self.order,
            "ops": self.ops,
            "site": str(self.site),
            "file": self.file.to_json(),
            "statistics": self.statistics.to_json(),
        }
        return sealed_text(value, _DIGEST).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> LayerManifest:
        """Read the result of `to_bytes`.

        Raises:
            FieldError: the content is damaged or not a manifest of a layer file.
        """
        fields = read_sealed(content, _DIGEST)
        result = cls(
            shard=fields.integer("shard"),
            samples=fields.integer("samples"),
            tokens=fields.integer("tokens"),
            vectors=fields.integer("vectors"),
            order=fields.text("order"),
            ops=fields.text("ops"),
            site=_site_of(fields.text("site"), "site"),
            file=FileEntry.from_json(fields.mapping("file"), "file"),
            statistics=LayerStatistics.from_json(fields.mapping("statistics")),
        )
        fields.done()
        return result


@dataclass(frozen=True)
class PromptsManifest:
    """Content of one file of prompts.

    Attributes:
        shard: number of the shard.
        samples: prompts in the file.
        tokens: tokens of all its prompts.
        order: digest of the sample ids in the order of the file, see `sample_order`.
        file: the file.
    """

    shard: int
    samples: int
    tokens: int
    order: str
    file: FileEntry

    def to_bytes(self) -> bytes:
        """The content of the manifest's file."""
        value = {
            "shard": self.shard,
            "samples": self.samples,
            "tokens": self.tokens,
            "order": self.order,
            "file": self.file.to_json(),
        }
        return sealed_text(value, _DIGEST).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> PromptsManifest:
        """Read the result of `to_bytes`.

        Raises:
            FieldError: the content is damaged or not a manifest of prompts.
        """
        fields = read_sealed(content, _DIGEST)
        result = cls(
            shard=fields.integer("shard"),
            samples=fields.integer("samples"),
            tokens=fields.integer("tokens"),
            order=fields.text("order"),
            file=FileEntry.from_json(fields.mapping("file"), "file"),
        )
        fields.done()
        return result


Manifest = LayerManifest | PromptsManifest


@dataclass(frozen=True)
class Shard:
    """One shard in all its sites.

    Attributes:
        shard, samples, tokens: as in LayerManifest, the same for every site.
        prompts: the file of its prompts.
        files: site to file.
    """

    shard: int
    samples: int
    tokens: int
    prompts: FileEntry
    files: Mapping[Site, FileEntry]

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """The layer files and the file of prompts."""
        return (*self.files.values(), self.prompts)

    def to_json(self) -> dict[str, Json]:
        """Values for json."""
        return {
            "shard": self.shard,
            "samples": self.samples,
            "tokens": self.tokens,
            "prompts": self.prompts.to_json(),
            "files": {str(site): entry.to_json() for site, entry in self.files.items()},
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Shard:
        """Read the result of `to_json`; errors call it `where`."""
        fields = Fields(value, where)
        result = cls(
            shard=fields.integer("shard"),
            samples=fields.integer("samples"),
            tokens=fields.integer("tokens"),
            prompts=FileEntry.from_json(fields.mapping("prompts"), fields.path("prompts")),
            files={
                site: FileEntry.from_json(each, f"{fields.path('files')}.{site}")
                for site, each in by_site(fields, "files").items()
            },
        )
        fields.done()
        return result


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
    """Put the manifests of a complete dataset in order.

    Args:
        manifests: one for each site and one for the prompts of each shard, in any order.
        sites: all sites, in the order of the metadata.
        num_shards: number of shards.

    Raises:
        ValueError: a file is missing, written twice or unknown, or the files of a shard differ in
            their samples or in the order of these.
    """
    paths = {
        data_file(site, shard, num_shards): (site, shard)
        for shard in range(num_shards)
        for site in (*sites, None)
    }
    found: dict[tuple[Site | None, int], Manifest] = {}
    for manifest in manifests:
        path = manifest.file.path
        if path not in paths:
            raise ValueError(
                f"{path} is of shard {manifest.shard}; expected shards 0..{num_shards - 1}, sites "
                f"{list(sites)} and their prompts"
            )
        if paths[path] in found:
            raise ValueError(f"{path} was written twice")
        found[paths[path]] = manifest
    for path, place in paths.items():
        if place not in found:
            raise ValueError(f"{path} was not written")
    return tuple(_shard(shard, sites, found) for shard in range(num_shards))


def _shard(
    shard: int, sites: Sequence[Site], found: Mapping[tuple[Site | None, int], Manifest]
) -> Shard:
    prompts = found[None, shard]
    files = {}
    for site in sites:
        manifest = found[site, shard]
        _check_same_samples(manifest, prompts)
        files[site] = manifest.file
    return Shard(shard, prompts.samples, prompts.tokens, prompts.file, files)


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


def by_site(fields: Fields, name: str) -> dict[Site, Json]:
    """Values of a field that is an object whose keys are sites, in forward order."""
    value = fields.mapping(name)
    found = {_site_of(key, fields.path(name)): each for key, each in value.items()}
    return {site: found[site] for site in sorted(found, key=forward_order)}


def _site_of(text: str, where: str) -> Site:
    try:
        site = parse_site(text)
    except ValueError as error:
        raise FieldError(f"{where}: {error}") from None
    if str(site) != text:
        raise FieldError(f"{where}: {text!r} is written {str(site)!r} here")
    return site
