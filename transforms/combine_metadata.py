"""The manifests of all files to ``metadata.json``, the commit of the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import apache_beam as beam

from activation_dataset.certify import CERTIFICATE_FILE
from activation_dataset.format import METADATA_FILE
from activation_dataset.manifest import Manifest, PromptsManifest, shards_of
from activation_dataset.metadata import InputFile, Metadata, RunDescription
from activation_dataset.reporting.card import CARD_FILE, renewed_card
from activation_dataset.sites import Site
from activation_dataset.statistics import LayerStatistics, OrderedMerge
from transforms.assign_shards import ShardPlan
from transforms.output_folder import OutputFolder, list_output
from transforms.whole_file import join, read_if_exists


class NonFiniteError(ValueError):
    """Activations that are not finite, where they are not allowed."""


class IncompleteError(RuntimeError):
    """Files or samples that should have been written and were not."""


@dataclass
class _Gathered:
    """Manifests without their statistics, and each site's statistics merged as far as possible."""

    manifests: list[Manifest] = field(default_factory=list)
    statistics: dict[Site, OrderedMerge] = field(default_factory=dict)

    def of_layer(self, layer: Site) -> OrderedMerge:
        return self.statistics.setdefault(layer, OrderedMerge())


class GatherManifests(beam.CombineFn):
    """Combines manifests in any order; the result does not depend on it."""

    def create_accumulator(self) -> _Gathered:
        return _Gathered()

    def add_input(self, gathered: _Gathered, manifest: Manifest) -> _Gathered:
        if isinstance(manifest, PromptsManifest):
            gathered.manifests.append(manifest)
            return gathered
        file = manifest.file
        gathered.of_layer(file.layer).add(manifest.shard, file.statistics)
        nothing = LayerStatistics.empty(0)
        gathered.manifests.append(replace(manifest, file=replace(file, statistics=nothing)))
        return gathered

    def merge_accumulators(self, accumulators: Iterable[_Gathered]) -> _Gathered:
        merged = _Gathered()
        for gathered in accumulators:
            merged.manifests += gathered.manifests
            for layer, statistics in gathered.statistics.items():
                merged.of_layer(layer).merge(statistics)
        return merged

    def extract_output(self, gathered: _Gathered) -> _Gathered:
        return gathered


def build_metadata(
    gathered: _Gathered,
    run: RunDescription,
    plan: ShardPlan,
    inputs: Sequence[InputFile],
    rejected: Mapping[str, int],
    allow_nonfinite: bool,
) -> Metadata:
    """Puts the dataset's description together and checks that nothing is missing.

    Raises:
      IncompleteError: if a file is missing, or samples are.
      NonFiniteError: if an activation is not finite and that is not allowed.
    """
    layers = run.sites
    try:
        shards = shards_of(gathered.manifests, layers, plan.num_shards)
        statistics = {layer: gathered.of_layer(layer).result(plan.num_shards) for layer in layers}
    except ValueError as error:
        raise IncompleteError(f"the dataset is not complete: {error}") from error
    metadata = Metadata(
        run=replace(run, inputs=tuple(sorted(inputs, key=lambda file: file.path))),
        shards=shards,
        rejected=rejected,
        statistics=statistics,
    )
    if (metadata.total_samples, metadata.total_tokens) != (plan.samples, plan.tokens):
        raise IncompleteError(
            f"{plan.samples} samples of {plan.tokens} tokens were planned, "
            f"{metadata.total_samples} of {metadata.total_tokens} were written"
        )
    broken = {layer: s.nonfinite_count for layer, s in statistics.items() if s.nonfinite_count}
    if broken and not allow_nonfinite:
        counts = ", ".join(f"{count} in layer {layer}" for layer, count in broken.items())
        raise NonFiniteError(
            f"activation vectors with NaN or infinite values: {counts}. The layer files are "
            "written; run again with --compute_dtype=float32 and --overwrite to avoid them, or "
            "with --allow_nonfinite to keep them counted in metadata.json."
        )
    return metadata


def check_files(metadata: Metadata, sizes: Mapping[str, int]) -> None:
    """Whether all that was written is still there.

    Args:
      sizes: name to bytes of what is in the folder.

    Raises:
      IncompleteError: naming what is not, or has another size.
    """
    entries = [
        entry for batch in metadata.shards for entry in (*batch.files.values(), batch.prompts)
    ]
    if lost := [entry.path for entry in entries if sizes.get(entry.path) != entry.bytes]:
        raise IncompleteError(
            f"{len(lost)} files were removed or changed since they were written, such as "
            f"{lost[0]}; run the same command again, which writes them again"
        )


@dataclass(eq=False)
class CombineMetadata(beam.PTransform):
    """The manifests of all files to ``metadata.json``, written last; gives the ``Metadata``.

    Attributes:
      plan: a singleton PCollection of the ``ShardPlan``.
      inputs: a PCollection of ``InputFile``.
      rejected: a singleton PCollection of reason to count.
    """

    folder: OutputFolder
    run: RunDescription
    allow_nonfinite: bool
    plan: beam.PCollection
    inputs: beam.PCollection
    rejected: beam.PCollection

    def expand(self, manifests: beam.PCollection) -> beam.PCollection:
        return (
            manifests
            | "Gather" >> beam.CombineGlobally(GatherManifests())
            | "WriteMetadata"
            >> beam.Map(
                _write_metadata,
                self.folder,
                self.run,
                self.allow_nonfinite,
                plan=beam.pvalue.AsSingleton(self.plan),
                inputs=beam.pvalue.AsList(self.inputs),
                rejected=beam.pvalue.AsSingleton(self.rejected),
            )
        )


def _write_metadata(
    gathered: _Gathered,
    folder: OutputFolder,
    run: RunDescription,
    allow_nonfinite: bool,
    plan: ShardPlan,
    inputs: Sequence[InputFile],
    rejected: Mapping[str, int],
) -> Metadata:
    metadata = build_metadata(gathered, run, plan, inputs, rejected, allow_nonfinite)
    content = metadata.to_json().encode()
    check_files(metadata, list_output(folder.path))
    # Each run removes what was there before it, so this is an attempt that was not heard of.
    if read_if_exists(join(folder.path, METADATA_FILE)) != content:
        _write_card(folder, metadata)
        folder.write(METADATA_FILE, content)
    folder.release()
    return metadata


def _write_card(folder: OutputFolder, metadata: Metadata) -> None:
    """Writes the dataset's README.md, unless a person wrote the one that is there."""
    present, certificate = (
        read_if_exists(join(folder.path, name)) for name in (CARD_FILE, CERTIFICATE_FILE)
    )
    card = renewed_card(metadata, present, certificate)
    if card is not None:
        folder.write(CARD_FILE, card.encode())
