"""metadata.json: what a dataset holds, how it was made, and the commit of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from activation_dataset.canonical_json import Json, canonical_text, digest_of, parse, plain
from activation_dataset.fields import FieldError, Fields
from activation_dataset.format import (
    POOLINGS,
    SCHEMA_VERSIONS,
    STORAGE_DTYPES,
    Pooling,
    StorageDtype,
    prompts_file,
    shard_file,
)
from activation_dataset.manifest import Shard, by_site
from activation_dataset.sites import (
    DEFAULT_HOOK_POINT,
    HOOK_POINTS,
    HookPoint,
    Site,
    hook_name,
    sites_of,
)
from activation_dataset.statistics import LayerStatistics

_RESIDUAL_ONLY = "residual_after_layer"
"""What version 1, which knows nothing else, calls its one hook point."""


@dataclass(frozen=True)
class InputFile:
    """One file that tasks were read from: path as sample ids give it, bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Json]:
        return {"path": self.path, "bytes": self.bytes, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: object, where: str) -> InputFile:
        fields = Fields(value, where)
        result = cls(fields.text("path"), fields.integer("bytes"), fields.text("sha256"))
        fields.done()
        return result


@dataclass(frozen=True)
class RunDescription:
    """How the dataset was made: known before the first vector is computed.

    Attributes:
        model_name: as the user gave it, a hub id or the name of a folder.
        layers_extracted: ascending.
        hidden_dim: elements of a vector.
        pooling: "last", "mean" or "none".
        hook_points: where in each layer vectors were captured, in the order of `HOOK_POINTS`.
        storage_dtype: of the stored elements.
        compute_dtype: in which the model ran.
        prompt_template: the template, whole.
        tokenizer: at least {"fingerprint": str}.
        weights: at least {"fingerprint": str}; says so where the weights are random.
        inputs: the files that tasks were read from, sorted by path.
        settings: every other setting that decides about bytes, such as max_length.
        versions: package to version.
    """

    model_name: str
    layers_extracted: tuple[int, ...]
    hidden_dim: int
    pooling: Pooling
    hook_points: tuple[HookPoint, ...]
    storage_dtype: StorageDtype
    compute_dtype: str
    prompt_template: Mapping[str, Json]
    tokenizer: Mapping[str, Json]
    weights: Mapping[str, Json]
    inputs: tuple[InputFile, ...]
    settings: Mapping[str, Json]
    versions: Mapping[str, str]

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """What vectors there are of each token or sample: every hook point of every layer."""
        return sites_of(self.layers_extracted, self.hook_points)

    def site(self, named: Site) -> Site:
        """The site of that number or of TransformerLens' name.

        Raises:
            KeyError: the dataset does not have it.
        """
        if named not in self._by_name:
            raise KeyError(f"layer {named} is not in the dataset, which has {self.sites}")
        return self._by_name[named]

    @cached_property
    def _by_name(self) -> dict[Site, Site]:
        return {name: site for site in self.sites for name in (site, hook_name(site))}

    @property
    def schema_version(self) -> int:
        """1 unless there are hook points that version 1 does not know."""
        return 1 if self.hook_points == (DEFAULT_HOOK_POINT,) else 2

    def to_json(self) -> dict[str, Json]:
        hook_points: dict[str, Json] = {"hook_points": list(self.hook_points)}
        if self.schema_version == 1:
            hook_points = {"hook_point": _RESIDUAL_ONLY}
        return {
            "model_name": self.model_name,
            "layers_extracted": list(self.layers_extracted),
            "num_layers_extracted": len(self.layers_extracted),
            "hidden_dim": self.hidden_dim,
            "pooling": self.pooling,
            **hook_points,
            "storage_dtype": self.storage_dtype,
            "byte_order": "little",
            "compute_dtype": self.compute_dtype,
            "prompt_template": plain(self.prompt_template),
            "tokenizer": plain(self.tokenizer),
            "weights": plain(self.weights),
            "inputs": [each.to_json() for each in self.inputs],
            "settings": plain(self.settings),
            "versions": plain(self.versions),
        }

    @classmethod
    def take(cls, fields: Fields, schema_version: int) -> RunDescription:
        """Takes its fields from a larger object."""
        hook_points: tuple[str, ...] = (DEFAULT_HOOK_POINT,)
        if schema_version == 1:
            fields.text("hook_point", [_RESIDUAL_ONLY])
        else:
            hook_points = fields.texts("hook_points", HOOK_POINTS)
        result = cls(
            model_name=fields.text("model_name"),
            layers_extracted=fields.integers("layers_extracted"),
            hidden_dim=fields.integer("hidden_dim", minimum=1),
            pooling=fields.text("pooling", POOLINGS),  # type: ignore[arg-type]
            hook_points=hook_points,  # type: ignore[arg-type]
            storage_dtype=fields.text("storage_dtype", STORAGE_DTYPES),  # type: ignore[arg-type]
            compute_dtype=fields.text("compute_dtype"),
            prompt_template=fields.mapping("prompt_template"),
            tokenizer=_with_fingerprint(fields, "tokenizer"),
            weights=_with_fingerprint(fields, "weights"),
            inputs=tuple(
                InputFile.from_json(each, f"{fields.path('inputs')}[{index}]")
                for index, each in enumerate(fields.items("inputs"))
            ),
            settings=fields.mapping("settings"),
            versions=fields.mapping("versions"),
        )
        fields.text("byte_order", ["little"])
        layers = result.layers_extracted
        if not layers or list(layers) != sorted(set(layers)):
            raise FieldError(f"layers_extracted is {list(layers)}, expected ascending layers")
        if fields.integer("num_layers_extracted") != len(layers):
            raise FieldError(f"num_layers_extracted is not {len(layers)}, as layers_extracted says")
        in_order = [each for each in HOOK_POINTS if each in hook_points]
        if not in_order or list(hook_points) != in_order:
            raise FieldError(f"hook_points is {list(hook_points)}, expected some of {HOOK_POINTS}")
        if result.schema_version != schema_version:
            raise FieldError(f"hook_points is {in_order}, which is for schema_version 1 to say")
        return result


@dataclass(frozen=True)
class Metadata:
    """All that metadata.json says.

    Attributes:
        run: how the dataset was made.
        shards: the shards, 0 to the last.
        rejected: reason to number of rejected tasks.
        statistics: site to the statistics of all its vectors.
    """

    run: RunDescription
    shards: tuple[Shard, ...]
    rejected: Mapping[str, int]
    statistics: Mapping[Site, LayerStatistics]

    @property
    def total_samples(self) -> int:
        return sum(batch.samples for batch in self.shards)

    @property
    def total_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(batch.tokens for batch in self.shards)

    @property
    def total_vectors(self) -> int:
        """Vectors of one layer."""
        return self.total_tokens if self.run.pooling == "none" else self.total_samples

    def to_json(self) -> str:
        """The text of metadata.json: the same values give the same text, byte for byte.

        Sorted keys, one line for each field, shard and layer, shortest floats that read back to the
        same bits, and the SHA-256 of all the rest in `metadata_sha256`.
        """
        value = self._value()
        return canonical_text(value | {"metadata_sha256": digest_of(value)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Reads and checks what `to_json` made.

        Raises:
            FieldError: the text is not JSON, was changed, has another schema version, or a field is
                missing, unknown, wrong, or contradicts another; says which.
        """
        try:
            value = parse(text)
        except ValueError as error:
            raise FieldError(f"not JSON: {error}") from None
        fields = Fields(value, "")
        version = fields.integer("schema_version")
        if version not in SCHEMA_VERSIONS:
            newer = version > max(SCHEMA_VERSIONS)
            raise FieldError(
                f"schema_version is {version}, but this reader knows "
                f"{' and '.join(map(str, SCHEMA_VERSIONS))}: "
                + ("install a newer version of it" if newer else "extract again")
            )
        result = cls(
            run=RunDescription.take(fields, version),
            shards=tuple(
                Shard.from_json(each, f"batches[{index}]")
                for index, each in enumerate(fields.items("batches"))
            ),
            rejected=_counts(fields, "rejected"),
            statistics={
                layer: LayerStatistics.from_json(each, f"statistics.{layer}")
                for layer, each in by_site(fields, "statistics").items()
            },
        )
        for name in ("total_samples", "total_tokens", "total_vectors"):
            total, said = getattr(result, name), fields.integer(name)
            if said != total:
                raise FieldError(f"{name} is {said}, but the batches add up to {total}")
        digest = fields.text("metadata_sha256")
        fields.done()
        result._check_consistency()
        try:
            unchanged = digest == digest_of(result._value())
        except (ValueError, RecursionError) as error:
            raise FieldError(f"a value that cannot be written: {error}") from None
        if not unchanged:
            raise FieldError("metadata_sha256 does not match: the file was changed after the run")
        return result

    def _value(self) -> dict[str, Json]:
        return {
            "schema_version": self.run.schema_version,
            **self.run.to_json(),
            "total_samples": self.total_samples,
            "total_tokens": self.total_tokens,
            "total_vectors": self.total_vectors,
            "batches": [batch.to_json() for batch in self.shards],
            "rejected": dict(self.rejected),
            "statistics": {str(layer): each.to_json() for layer, each in self.statistics.items()},
        }

    def _check_consistency(self) -> None:
        layers = list(self.run.sites)
        for index, batch in enumerate(self.shards):
            if batch.shard != index:
                raise FieldError(f"batches[{index}].shard is {batch.shard}, expected {index}")
            if batch.prompts.path != (expected := prompts_file(index, len(self.shards))):
                raise FieldError(
                    f"batches[{index}].prompts.path is {batch.prompts.path!r}, "
                    f"expected {expected!r}"
                )
            if list(batch.files) != layers:
                raise FieldError(
                    f"batches[{index}].files has layers {list(batch.files)}, expected {layers}"
                )
            for layer, entry in batch.files.items():
                expected = shard_file(layer, index, len(self.shards))
                if entry.path != expected:
                    raise FieldError(
                        f"batches[{index}].files.{layer}.path is {entry.path!r}, "
                        f"expected {expected!r}"
                    )
        if list(self.statistics) != layers:
            raise FieldError(f"statistics has layers {list(self.statistics)}, expected {layers}")
        for layer, each in self.statistics.items():
            if each.hidden != self.run.hidden_dim:
                raise FieldError(
                    f"statistics.{layer}.mean has {each.hidden} elements, "
                    f"expected hidden_dim = {self.run.hidden_dim}"
                )
            if each.count + each.nonfinite_count != self.total_vectors:
                raise FieldError(
                    f"statistics.{layer} counts {each.count + each.nonfinite_count} vectors, "
                    f"expected {self.total_vectors}"
                )


def _counts(fields: Fields, name: str) -> dict[str, int]:
    """An object whose values are counts."""
    inner = Fields(value := fields.mapping(name), fields.path(name))
    return {key: inner.integer(key) for key in value}


def _with_fingerprint(fields: Fields, name: str) -> dict[str, Json]:
    value = fields.mapping(name)
    Fields(value, fields.path(name)).text("fingerprint")
    return value
