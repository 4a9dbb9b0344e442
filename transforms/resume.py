"""Finished files of an interrupted run, identified by their manifests.

The manifest of a file is written before the file is committed. A file with the size and CRC32C of
its manifest is therefore exactly the file that was written. Its samples are those of the plan,
because `run.json` holds the digest of the plan and a run with another one is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from activation_dataset.fields import FieldError
from activation_dataset.format import data_file, manifest_file, parse_data_file
from activation_dataset.manifest import LayerManifest, Manifest, PromptsManifest
from activation_dataset.sites import Site
from transforms.output_folder import OutputFolder
from transforms.storage import Measured, join, read_each, sizes_and_crc32c
from transforms.whole_file import WholeFile

LOGGER = logging.getLogger(__name__)

Finished = Mapping[Site | None, Manifest]
"""The manifests of finished files by site; the key None is that of the prompts."""


@dataclass(frozen=True, eq=False)
class ListedFiles:
    """Data files in a bucket when a worker started, so that the worker lists them once.

    A file that is committed later is computed again, and kept if it has the same content.

    Attributes:
        measured: bytes and CRC32C by path.
    """

    measured: Mapping[str, Measured]

    @classmethod
    def of(cls, output_dir: str, num_shards: int, sites: Iterable[Site]) -> ListedFiles:
        """List the data files of all shards."""
        names = (
            data_file(site, n, num_shards) for site in (*sites, None) for n in range(num_shards)
        )
        return cls(sizes_and_crc32c(join(output_dir, name) for name in names))


def finished_files(
    output_dir: str,
    shard: int,
    num_shards: int,
    sites: Iterable[Site],
    listed: ListedFiles | None = None,
) -> Finished:
    """Return the manifests of all files of a shard that exist and match; warn of the others.

    With `listed`, a bucket is not listed again.
    """
    finished: dict[Site | None, Manifest] = {}
    paths = {site: join(output_dir, data_file(site, shard, num_shards)) for site in (*sites, None)}
    measured = listed.measured if listed else sizes_and_crc32c(paths.values())
    existing = {site: path for site, path in paths.items() if path in measured}
    contents = read_each(
        join(output_dir, manifest_file(site, shard, num_shards)) for site in existing
    )
    for (site, path), content in zip(existing.items(), contents, strict=True):
        try:
            if content is None:
                raise FieldError("it has no manifest")
            kind = PromptsManifest if site is None else LayerManifest
            manifest: Manifest = kind.from_bytes(content)
        except FieldError as error:
            _warn(path, str(error))
            continue
        if (manifest.file.bytes, manifest.file.crc32c) == measured[path]:
            finished[site] = manifest
        else:
            _warn(path, "it is not the file that its manifest describes")
    return finished


def in_order(finished: Finished, order: str) -> Finished:
    """Return the files whose samples have the given order, and warn of the others.

    The order in which a worker writes depends on the number of its devices.
    """
    for manifest in finished.values():
        if manifest.order != order:
            _warn(manifest.file.path, "its samples are in the order of another kind of worker")
    return {site: each for site, each in finished.items() if each.order == order}


def ops_of_files(output_dir: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the operations that computed existing files, from one manifest of each shard."""
    manifests = {}
    for name in names:
        site, shard, num_shards = parse_data_file(name) or (None, 0, 0)
        if site is not None:
            manifests[shard] = join(output_dir, manifest_file(site, shard, num_shards))
    found = set()
    for content in read_each(manifests.values()):
        # A file with a damaged manifest is rewritten.
        with suppress(FieldError):
            found.add(LayerManifest.from_bytes(content or b"").ops)
    return tuple(sorted(found))


def commit_file(
    folder: OutputFolder, site: Site | None, file: WholeFile, manifest: Manifest, num_shards: int
) -> None:
    """Write the manifest of a file, then commit the file."""
    folder.write(manifest_file(site, manifest.shard, num_shards), manifest.to_bytes())
    file.commit(manifest.file.crc32c)


def _warn(path: str, why: str) -> None:
    LOGGER.warning("%s is written again: %s", path, why)
