"""Combination of the manifests of all files into `metadata.json`, the commit of the dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import apache_beam as beam

from activation_dataset.certify import CERTIFICATE_FILE
from activation_dataset.format import METADATA_FILE
from activation_dataset.manifest import LayerManifest, Manifest, shards_of
from activation_dataset.metadata import Metadata, RunDescription
from activation_dataset.reporting.card import CARD_FILE, renewed_card
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from transforms.assign_shards import ShardPlan
from transforms.output_folder import OutputFolder, remove_partial_files
from transforms.report_inputs import InputReport
from transforms.storage import join, read_if_exists, sizes_and_crc32c

SHARDS_OF_A_GROUP = 128
"""Shards of a group whose statistics are merged first, a power of 2. Groups bound the number of
shards that wait for their neighbors."""


class NonFiniteError(ValueError):
    """Non-finite activations without `--allow_nonfinite`."""


class IncompleteError(RuntimeError):
    """Files or samples that are missing at the end of a run."""


@dataclass
class _Gathered:
    """Manifests without statistics, and the statistics by site, merged as far as possible."""

    manifests: list[Manifest] = field(default_factory=list)
    statistics: dict[Site, OrderedMerge] = field(default_factory=dict)

    def of_site(self, site: Site) -> OrderedMerge:
        return self.statistics.setdefault(site, OrderedMerge())


class GatherManifests(beam.CombineFn):
    """Combines manifests; the result does not depend on the order in which they arrive."""

    def create_accumulator(self) -> _Gathered:
        return _Gathered()

    def add_input(self, gathered: _Gathered, manifest: Manifest) -> _Gathered:
        if isinstance(manifest, LayerManifest):
            gathered.of_site(manifest.site).add(manifest.shard, manifest.statistics)
            manifest = replace(manifest, statistics=LayerStatistics.empty(0))
        gathered.manifests.append(manifest)
        return gathered

    def merge_accumulators(self, accumulators: Iterable[_Gathered]) -> _Gathered:
        merged = _Gathered()
        for gathered in accumulators:
            merged.manifests += gathered.manifests
            for site, statistics in gathered.statistics.items():
                merged.of_site(site).merge(statistics)
        return merged

    def extract_output(self, gathered: _Gathered) -> _Gathered:
        return gathered


class MergeGathered(GatherManifests):
    """Combines the results of `GatherManifests` for groups of shards."""

    def add_input(self, merged: _Gathered, gathered: _Gathered) -> _Gathered:  # type: ignore[override]
        return self.merge_accumulators((merged, gathered))


def _group_of(manifest: Manifest) -> int:
    return manifest.shard // SHARDS_OF_A_GROUP


def build_metadata(
    gathered: _Gathered,
    run: RunDescription,
    allow_nonfinite: bool,
    plan: ShardPlan,
    report: InputReport,
) -> Metadata:
    """Assemble the metadata of a dataset, as in `CombineMetadata`, if nothing is missing.

    Raises:
        IncompleteError: if a file or a sample is missing.
        NonFiniteError: if an activation is not finite and `allow_nonfinite` is False.
    """
    try:
        shards = shards_of(gathered.manifests, run.sites, plan.num_shards)
        statistics = {site: gathered.of_site(site).result(plan.num_shards) for site in run.sites}
    except ValueError as error:
        raise IncompleteError(f"the dataset is not complete: {error}") from error
    ops = {each.ops for each in gathered.manifests if isinstance(each, LayerManifest)}
    counts = report.counts
    files = tuple(sorted(report.files, key=lambda file: file.path))
    metadata = Metadata(
        run=replace(run, inputs=files),
        shards=shards,
        counts=counts,
        statistics=statistics,
        ops=tuple(sorted(ops)),
        skipped_files=tuple(sorted(set(report.skipped) - {file.path for file in files})),
        duplicate_tasks=sum(each.reason == "same_content" for each in report.notices),
    )
    if counts.samples.written != plan.samples:
        raise IncompleteError(
            f"{counts.samples.written} samples were tokenized, {plan.samples} were planned"
        )
    if (metadata.total_samples, metadata.total_tokens) != (plan.samples, plan.tokens):
        raise IncompleteError(
            f"{plan.samples} samples of {plan.tokens} tokens were planned, "
            f"{metadata.total_samples} of {metadata.total_tokens} were written"
        )
    broken = {site: each.nonfinite_count for site, each in statistics.items()}
    if any(broken.values()) and not allow_nonfinite:
        where = ", ".join(f"{count} in layer {site}" for site, count in broken.items() if count)
        raise NonFiniteError(
            f"activation vectors with NaN or infinite values: {where}. The layer files are "
            "written. If the weights are finite, run again with --compute_dtype=float32 and "
            "--overwrite. To keep these vectors and count them in metadata.json, run again with "
            "--allow_nonfinite."
        )
    return metadata


def write_metadata(metadata: Metadata, folder: OutputFolder) -> Metadata:
    """Commit the dataset, if all its files still exist, and release the folder.

    Raises:
        IncompleteError: if a file is missing or its bytes differ; names it.
    """
    content = metadata.to_json().encode()
    # The runner repeats an attempt whose success it did not see.
    if read_if_exists(join(folder.path, METADATA_FILE)) != content:
        folder.check()
        remove_partial_files(folder.path)
        check_files(metadata, folder.path)
        _write_card(folder, metadata)
        folder.write(METADATA_FILE, content)
    folder.release()
    return metadata


def check_files(metadata: Metadata, path: str) -> None:
    """Compare all files of a folder with their metadata.

    Two attempts at a shard may have written different bits, in any order of their commits.

    Raises:
        IncompleteError: if a file is missing or its bytes differ; names it.
    """
    entries = [entry for shard in metadata.shards for entry in shard.all_files]
    found = sizes_and_crc32c(join(path, entry.path) for entry in entries)
    lost = [
        entry.path
        for entry in entries
        if found.get(join(path, entry.path)) != (entry.bytes, entry.crc32c)
    ]
    if lost:
        raise IncompleteError(
            f"{len(lost)} files were removed or changed since they were written, such as "
            f"{lost[0]}. Run the same command again to rewrite them"
        )


@dataclass(eq=False)
class CombineMetadata(beam.PTransform):
    """Combines manifests of all files into the `Metadata`, and writes `metadata.json` last.

    Attributes:
        folder, run: the claimed output folder, and the description of the run without its inputs.
        allow_nonfinite: True to allow vectors with NaN or infinite values.
        plan, report: singleton PCollections of the `ShardPlan` and of the `InputReport`.
    """

    folder: OutputFolder
    run: RunDescription
    allow_nonfinite: bool
    plan: beam.PCollection
    report: beam.PCollection

    def expand(self, manifests: beam.PCollection) -> beam.PCollection:
        return (
            manifests
            | "ByGroup" >> beam.WithKeys(_group_of)
            | "GatherGroups" >> beam.CombinePerKey(GatherManifests())
            | "Groups" >> beam.Values()
            | "Gather" >> beam.CombineGlobally(MergeGathered())
            | "Build"
            >> beam.Map(
                build_metadata,
                self.run,
                self.allow_nonfinite,
                plan=beam.pvalue.AsSingleton(self.plan),
                report=beam.pvalue.AsSingleton(self.report),
            )
            | "Write" >> beam.Map(write_metadata, self.folder)
        )


def _write_card(folder: OutputFolder, metadata: Metadata) -> None:
    """Write the dataset's README.md, unless a person wrote the existing one."""
    present, certificate = (
        read_if_exists(join(folder.path, name)) for name in (CARD_FILE, CERTIFICATE_FILE)
    )
    card = renewed_card(metadata, present, certificate)
    if card is not None:
        folder.write(CARD_FILE, card.encode())
