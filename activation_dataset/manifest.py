"""What was written of each shard, and how metadata.json lists it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from activation_dataset.canonical_json import Json
from activation_dataset.fields import FieldError, Fields
from activation_dataset.format import prompts_file, shard_file
from activation_dataset.sites import Site, forward_order, parse_site
from activation_dataset.statistics import LayerStatistics


@dataclass(frozen=True)
class FileEntry:
    """One layer file, as metadata.json lists it.

    Attributes:
        path: below the dataset's folder, with "/".
        bytes: size of the file.
        crc32c: of the whole file, in base64 as Cloud Storage shows it.
    """

    path: str
    bytes: int
    crc32c: str

    def to_json(self) -> dict[str, Json]:
        return {"path": self.path, "bytes": self.bytes, "crc32c": self.crc32c}

    @classmethod
    def from_json(cls, value: object, where: str) -> FileEntry:
        fields = Fields(value, where)
        result = cls(fields.text("path"), fields.integer("bytes"), fields.text("crc32c"))
        fields.done()
        return result


@dataclass(frozen=True)
class LayerFile:
    """One layer file that was written or verified: its entry and the statistics of its vectors."""

    layer: Site
    path: str
    bytes: int
    crc32c: str
    statistics: LayerStatistics

    @property
    def entry(self) -> FileEntry:
        return FileEntry(self.path, self.bytes, self.crc32c)


@dataclass(frozen=True)
class LayerManifest:
    """One layer of one shard, written.

    Attributes:
        shard: number of the shard.
        samples: records in the file.
        tokens: tokens of all its prompts.
        vectors: activation vectors in the file: one for each sample, or for each token.
        file: the file.
    """

    shard: int
    samples: int
    tokens: int
    vectors: int
    file: LayerFile


@dataclass(frozen=True)
class PromptsManifest:
    """The prompts of one shard, written.

    Attributes:
        shard: number of the shard.
        samples: prompts in the file.
        tokens: tokens of all of them.
        file: the file.
    """

    shard: int
    samples: int
    tokens: int
    file: FileEntry


Manifest = LayerManifest | PromptsManifest


@dataclass(frozen=True)
class Shard:
    """One shard in all its layers.

    Attributes:
        shard, samples, tokens: as in LayerManifest, the same in every layer.
        prompts: the file of its prompts.
        files: site to file.
    """

    shard: int
    samples: int
    tokens: int
    prompts: FileEntry
    files: Mapping[Site, FileEntry]

    def to_json(self) -> dict[str, Json]:
        return {
            "shard": self.shard,
            "samples": self.samples,
            "tokens": self.tokens,
            "prompts": self.prompts.to_json(),
            "files": {str(layer): entry.to_json() for layer, entry in self.files.items()},
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Shard:
        fields = Fields(value, where)
        result = cls(
            fields.integer("shard"),
            fields.integer("samples"),
            fields.integer("tokens"),
            FileEntry.from_json(fields.mapping("prompts"), f"{where}.prompts"),
            {
                layer: FileEntry.from_json(entry, f"{where}.files.{layer}")
                for layer, entry in by_site(fields, "files").items()
            },
        )
        fields.done()
        return result


def shards_of(
    manifests: Iterable[Manifest], layers: tuple[Site, ...], num_shards: int
) -> tuple[Shard, ...]:
    """Puts the manifests of all files of all shards together, in whatever order they come.

    Raises:
        ValueError: a file is missing or comes twice, or the files of a shard disagree on samples or
            tokens; says which.
    """
    expected = [
        [*(shard_file(layer, n, num_shards) for layer in layers), prompts_file(n, num_shards)]
        for n in range(num_shards)
    ]
    known = {path for paths in expected for path in paths}
    found: dict[str, Manifest] = {}
    for manifest in manifests:
        path = manifest.file.path
        if path not in known:
            raise ValueError(
                f"{path} is of shard {manifest.shard}; expected shards 0..{num_shards - 1}, layers "
                f"{list(layers)} and their prompts"
            )
        if path in found:
            raise ValueError(f"{path} was written twice")
        found[path] = manifest
    return tuple(_batch(n, paths, layers, found) for n, paths in enumerate(expected))


def _batch(
    shard: int, paths: Sequence[str], layers: Sequence[Site], found: Mapping[str, Manifest]
) -> Shard:
    for path in paths:
        if path not in found:
            raise ValueError(f"{path} was not written")
    first = found[paths[0]]
    for path in paths:
        each = found[path]
        if (each.samples, each.tokens) != (first.samples, first.tokens):
            raise ValueError(
                f"{path} has {each.samples} samples and {each.tokens} tokens, "
                f"{first.file.path} {first.samples} and {first.tokens}"
            )
    *entries, prompts = (_entry(found[path]) for path in paths)
    files = dict(zip(layers, entries, strict=True))
    return Shard(shard, first.samples, first.tokens, prompts, files)


def _entry(manifest: Manifest) -> FileEntry:
    return manifest.file.entry if isinstance(manifest, LayerManifest) else manifest.file


def by_site(fields: Fields, name: str) -> dict[Site, Json]:
    """A field that is an object whose keys are sites; gives them in forward order."""
    value = fields.mapping(name)
    sites: list[Site] = []
    for key in value:
        try:
            sites.append(parse_site(key))
        except ValueError as error:
            raise FieldError(f"{fields.path(name)} has the key {error}") from None
        if str(sites[-1]) != key:
            raise FieldError(f"{fields.path(name)} has the key {key!r}, expected {sites[-1]!s}")
    return {site: value[str(site)] for site in sorted(sites, key=forward_order)}
