"""Content of metadata.json, which describes a dataset. The job writes it last, as the commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

from activation_dataset.canonical_json import read_sealed, sealed_text
from activation_dataset.fields import FieldError, Json, check_names, from_json, to_json
from activation_dataset.format import Pooling, data_file
from activation_dataset.input_counts import InputCounts
from activation_dataset.manifest import Shard
from activation_dataset.record import RecordKind
from activation_dataset.sites import HOOK_POINTS, HookPoint, Site, hook_name, sites_of
from activation_dataset.statistics import LayerStatistics
from activation_dataset.storage_dtype import StorageDtype

_DIGEST = "metadata_sha256"
_OTHER_FIELDS = (
    *("num_layers_extracted", "byte_order", "total_samples", "total_tokens", "total_vectors"),
    *("batches", "counts", "skipped_files", "duplicate_tasks", "statistics", "ops"),
)


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: path as in sample ids.
        bytes: size.
        sha256: SHA-256 in hex.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class RunDescription:
    """Origin of a dataset, known before the first vector is computed.

    Attributes:
        model_name: name of the model as the user gave it, a hub id or the name of a folder.
        layers_extracted: layer numbers, ascending.
        hidden_dim: width of the residual stream.
        widths: width of each site whose width is not `hidden_dim`.
        pooling: pooling of the vectors.
        hook_points: hook points captured in each layer, in the order of `HOOK_POINTS`.
        storage_dtype: dtype of the stored elements.
        compute_dtype: dtype of the model.
        prompt_template: the whole template.
        model: shape of the model, as the job read it from `config.json`.
        tokenizer: at least {"fingerprint": str}, and "digits", the lists of token ids of the
            digits 0 to 9.
        weights: at least {"fingerprint": str}, "random" for random weights, and "commit" for a
            model of the Hugging Face hub.
        inputs: input files, sorted by path.
        settings: all other settings that affect the bytes, such as max_length.
        versions: version of each package.
    """

    model_name: str
    layers_extracted: tuple[int, ...]
    hidden_dim: int
    widths: Mapping[Site, int] = field(default_factory=dict, kw_only=True)
    pooling: Pooling
    hook_points: tuple[HookPoint, ...]
    storage_dtype: StorageDtype
    compute_dtype: str
    prompt_template: Mapping[str, Json]
    model: Mapping[str, Json]
    tokenizer: Mapping[str, Json]
    weights: Mapping[str, Json]
    inputs: tuple[InputFile, ...]
    settings: Mapping[str, Json]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        layers = list(self.layers_extracted)
        if not layers or layers != sorted(set(layers)):
            raise ValueError(f"layers_extracted is {layers}, expected ascending layer numbers")
        if not self.hidden_dim:
            raise ValueError("hidden_dim is 0, expected at least 1")
        points = list(self.hook_points)
        if not points or points != [each for each in HOOK_POINTS if each in points]:
            raise ValueError(f"hook_points is {points}, expected some of {HOOK_POINTS} in order")
        other = [site for site in self.sites if self.width(site) != self.hidden_dim]
        if list(self.widths) != other or not all(self.widths.values()):
            raise ValueError(
                f"widths is {dict(self.widths)}, expected widths that are neither 0 nor hidden_dim "
                f"= {self.hidden_dim}, for some of the sites {list(self.sites)} in order"
            )
        for name in ("tokenizer", "weights"):
            if not isinstance(getattr(self, name).get("fingerprint"), str):
                raise ValueError(f"{name}.fingerprint is missing or not a string")

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """All sites: every hook point of every layer."""
        return sites_of(self.layers_extracted, self.hook_points)

    def width(self, site: Site) -> int:
        """Return the number of elements of a vector at a site."""
        return self.widths.get(site, self.hidden_dim)

    def record_kind(self, site: Site) -> RecordKind:
        """Return the properties of the records of a site."""
        return RecordKind(self.pooling, self.storage_dtype, self.width(site))

    def site(self, named: Site) -> Site:
        """Return the site with a layer number or TransformerLens name.

        Raises:
            KeyError: if the dataset does not have this site.
        """
        if named not in self._by_name:
            raise KeyError(f"site {named!r} is not in the dataset, which has {self.sites}")
        return self._by_name[named]

    @cached_property
    def _by_name(self) -> dict[Site, Site]:
        return {name: site for site in self.sites for name in (site, hook_name(site))}


@dataclass(frozen=True)
class Metadata:
    """Content of metadata.json.

    Attributes:
        run: origin of the dataset.
        shards: all shards in order.
        counts: counts of what the run read, wrote and rejected.
        statistics: statistics of all vectors of each site.
        ops: implementations and devices that computed the vectors, sorted, such as ("xla on cpu",).
        skipped_files: input files and folders (with "/" at the end) that were not read, sorted.
        duplicate_tasks: number of tasks and documents that repeat the content of an earlier one.
    """

    run: RunDescription
    shards: tuple[Shard, ...]
    counts: InputCounts
    statistics: Mapping[Site, LayerStatistics]
    ops: tuple[str, ...]
    skipped_files: tuple[str, ...] = ()
    duplicate_tasks: int = 0

    @property
    def total_samples(self) -> int:
        """Number of records of one site."""
        return sum(shard.samples for shard in self.shards)

    @property
    def total_tokens(self) -> int:
        """Number of tokens of all prompts."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def total_vectors(self) -> int:
        """Number of vectors of one site."""
        return sum(shard.vectors for shard in self.shards)

    def to_json(self) -> str:
        """Return the text of metadata.json. Equal values give equal text, byte for byte.

        Each field, shard and site has its own line. Floats have the fewest digits that restore the
        same bits. `metadata_sha256` is the digest of the text without its line.
        """
        stored = {**to_json(self.run), **self._derived()}
        stored["batches"] = to_json(self.shards)
        for name in ("counts", "skipped_files", "duplicate_tasks", "statistics", "ops"):
            stored[name] = to_json(getattr(self, name))
        return sealed_text(stored, _DIGEST)

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Read and check the result of `to_json`.

        Raises:
            FieldError: if the text is not JSON, was changed or has another schema version, or a
                field is missing, unknown, wrong or contradicts another field.
        """
        value = read_sealed(text, _DIGEST)
        run_names = [each.name for each in fields(RunDescription)]
        check_names(value, [*run_names, *_OTHER_FIELDS], where="")
        run = {name: value[name] for name in run_names}
        result = cls(
            run=from_json(RunDescription, run, ""),
            shards=from_json(tuple[Shard, ...], value["batches"], "batches"),
            counts=from_json(InputCounts, value["counts"], "counts"),
            statistics=from_json(Mapping[Site, LayerStatistics], value["statistics"], "statistics"),
            ops=from_json(tuple[str, ...], value["ops"], "ops"),
            skipped_files=from_json(tuple[str, ...], value["skipped_files"], "skipped_files"),
            duplicate_tasks=from_json(int, value["duplicate_tasks"], "duplicate_tasks"),
        )
        for name, expected in result._derived().items():
            if value[name] != expected:
                raise FieldError(f"{name} is {value[name]!r}, but the other fields say {expected}")
        if result.counts.samples.written != result.total_samples:
            raise FieldError(
                f"counts.samples.written is {result.counts.samples.written}, expected "
                f"total_samples = {result.total_samples}"
            )
        result._check_shards()
        result._check_statistics()
        return result

    def _derived(self) -> dict[str, Json]:
        return {
            "num_layers_extracted": len(self.run.layers_extracted),
            "byte_order": "little",
            "total_samples": self.total_samples,
            "total_tokens": self.total_tokens,
            "total_vectors": self.total_vectors,
        }

    def _check_shards(self) -> None:
        sites = list(self.run.sites)
        for index, shard in enumerate(self.shards):
            where = f"batches[{index}]"
            if shard.shard != index:
                raise FieldError(f"{where}.shard is {shard.shard}, expected {index}")
            pooled = self.run.pooling != "none"
            if shard.vectors > shard.tokens or (pooled and shard.vectors != shard.samples):
                raise FieldError(
                    f"{where}.vectors is {shard.vectors}, but the shard has {shard.samples} "
                    f"samples with {shard.tokens} tokens and pooling {self.run.pooling}"
                )
            if list(shard.files) != sites:
                raise FieldError(f"{where}.files has {list(shard.files)}, expected {sites}")
            for site, entry in zip((*sites, None), shard.all_files, strict=True):
                expected = data_file(site, index, len(self.shards))
                if entry.path != expected:
                    raise FieldError(f"{where} has the path {entry.path!r}, expected {expected!r}")

    def _check_statistics(self) -> None:
        sites = list(self.run.sites)
        if list(self.statistics) != sites:
            raise FieldError(f"statistics has {list(self.statistics)}, expected {sites}")
        for site, each in self.statistics.items():
            if each.hidden != self.run.width(site):
                name = "widths" if site in self.run.widths else "hidden_dim"
                raise FieldError(
                    f"statistics.{site}.mean has {each.hidden} elements, "
                    f"expected {name} = {self.run.width(site)}"
                )
            if each.count + each.nonfinite_count != self.total_vectors:
                raise FieldError(
                    f"statistics.{site} counts {each.count + each.nonfinite_count} vectors, "
                    f"expected {self.total_vectors}"
                )
