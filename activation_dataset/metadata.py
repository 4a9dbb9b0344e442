"""metadata.json: content and origin of a dataset, and the commit of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from activation_dataset.canonical_json import Json, plain, read_sealed, sealed_text
from activation_dataset.fields import FieldError, Fields
from activation_dataset.format import (
    POOLINGS,
    STORAGE_DTYPES,
    Pooling,
    StorageDtype,
    data_file,
)
from activation_dataset.manifest import Shard, by_site
from activation_dataset.sites import HOOK_POINTS, HookPoint, Site, hook_name, sites_of
from activation_dataset.statistics import LayerStatistics

_DIGEST = "metadata_sha256"


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        path: as sample ids give it.
        bytes: size of the file.
        sha256: in hex.
    """

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
    """Origin of a dataset, known before the first vector is computed.

    Attributes:
        model_name: as the user gave it, a hub id or the name of a folder.
        layers_extracted: ascending.
        hidden_dim: elements of a vector.
        pooling: "last", "mean" or "none".
        hook_points: captured in each layer, in the order of `HOOK_POINTS`.
        storage_dtype: of the stored elements.
        compute_dtype: dtype in which the model ran.
        prompt_template: the whole template.
        tokenizer: at least {"fingerprint": str}.
        weights: at least {"fingerprint": str}; says so if the weights are random.
        inputs: the input files, sorted by path.
        settings: all other settings that decide about bytes, such as max_length.
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
        """All sites: every hook point of every layer."""
        return sites_of(self.layers_extracted, self.hook_points)

    def site(self, named: Site) -> Site:
        """The site with a layer's number or a TransformerLens name.

        Raises:
            KeyError: the dataset does not have it.
        """
        if named not in self._by_name:
            raise KeyError(f"site {named} is not in the dataset, which has {self.sites}")
        return self._by_name[named]

    @cached_property
    def _by_name(self) -> dict[Site, Site]:
        return {name: site for site in self.sites for name in (site, hook_name(site))}

    def to_json(self) -> dict[str, Json]:
        """Values for json."""
        return {
            "model_name": self.model_name,
            "layers_extracted": list(self.layers_extracted),
            "num_layers_extracted": len(self.layers_extracted),
            "hidden_dim": self.hidden_dim,
            "pooling": self.pooling,
            "hook_points": list(self.hook_points),
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
    def take(cls, fields: Fields) -> RunDescription:
        """Take the fields of a run from a larger object.

        Raises:
            FieldError: a field is missing or wrong.
        """
        result = cls(
            model_name=fields.text("model_name"),
            layers_extracted=fields.integers("layers_extracted"),
            hidden_dim=fields.integer("hidden_dim", minimum=1),
            pooling=fields.text("pooling", POOLINGS),  # type: ignore[arg-type]
            hook_points=fields.texts("hook_points", HOOK_POINTS),  # type: ignore[arg-type]
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
        in_order = tuple(each for each in HOOK_POINTS if each in result.hook_points)
        if not in_order or result.hook_points != in_order:
            raise FieldError(
                f"hook_points is {list(result.hook_points)}, expected some of {list(HOOK_POINTS)} "
                "in this order"
            )
        return result


@dataclass(frozen=True)
class Metadata:
    """Content of metadata.json.

    Attributes:
        run: origin of the dataset.
        shards: all shards, in order.
        rejected: reason to number of rejected tasks.
        statistics: site to the statistics of all its vectors.
        ops: implementations that computed the vectors, sorted, such as ("xla",).
    """

    run: RunDescription
    shards: tuple[Shard, ...]
    rejected: Mapping[str, int]
    statistics: Mapping[Site, LayerStatistics]
    ops: tuple[str, ...]

    @property
    def total_samples(self) -> int:
        """Records of one site."""
        return sum(shard.samples for shard in self.shards)

    @property
    def total_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def total_vectors(self) -> int:
        """Vectors of one site."""
        return self.total_tokens if self.run.pooling == "none" else self.total_samples

    def to_json(self) -> str:
        """The text of metadata.json. Equal values give equal text, byte for byte.

        Keys are sorted, each field, shard and site has a line, floats are the shortest that read
        back to the same bits, and `metadata_sha256` is the digest of all other fields.
        """
        value = {
            **self.run.to_json(),
            "total_samples": self.total_samples,
            "total_tokens": self.total_tokens,
            "total_vectors": self.total_vectors,
            "batches": [shard.to_json() for shard in self.shards],
            "rejected": dict(self.rejected),
            "statistics": {str(site): each.to_json() for site, each in self.statistics.items()},
            "ops": list(self.ops),
        }
        return sealed_text(value, _DIGEST)

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Read and check the result of `to_json`.

        Raises:
            FieldError: the text is not JSON, was changed, has another schema version, or a field is
                missing, unknown, wrong, or contradicts another.
        """
        fields = read_sealed(text, _DIGEST)
        result = cls(
            run=RunDescription.take(fields),
            shards=tuple(
                Shard.from_json(each, f"batches[{index}]")
                for index, each in enumerate(fields.items("batches"))
            ),
            rejected=_counts(fields, "rejected"),
            statistics={
                site: LayerStatistics.from_json(each, f"statistics.{site}")
                for site, each in by_site(fields, "statistics").items()
            },
            ops=fields.texts("ops"),
        )
        for name in ("total_samples", "total_tokens", "total_vectors"):
            total, said = getattr(result, name), fields.integer(name)
            if said != total:
                raise FieldError(f"{name} is {said}, but the batches add up to {total}")
        fields.done()
        result._check_shards()
        result._check_statistics()
        return result

    def _check_shards(self) -> None:
        sites = list(self.run.sites)
        for index, shard in enumerate(self.shards):
            where = f"batches[{index}]"
            if shard.shard != index:
                raise FieldError(f"{where}.shard is {shard.shard}, expected {index}")
            if list(shard.files) != sites:
                raise FieldError(f"{where}.files has {list(shard.files)}, expected {sites}")
            for site, entry in {**shard.files, None: shard.prompts}.items():
                expected = data_file(site, index, len(self.shards))
                if entry.path != expected:
                    raise FieldError(f"{where} has the path {entry.path!r}, expected {expected!r}")

    def _check_statistics(self) -> None:
        sites = list(self.run.sites)
        if list(self.statistics) != sites:
            raise FieldError(f"statistics has {list(self.statistics)}, expected {sites}")
        for site, each in self.statistics.items():
            if each.hidden != self.run.hidden_dim:
                raise FieldError(
                    f"statistics.{site}.mean has {each.hidden} elements, "
                    f"expected hidden_dim = {self.run.hidden_dim}"
                )
            if each.count + each.nonfinite_count != self.total_vectors:
                raise FieldError(
                    f"statistics.{site} counts {each.count + each.nonfinite_count} vectors, "
                    f"expected {self.total_vectors}"
                )


def _counts(fields: Fields, name: str) -> dict[str, int]:
    """An object whose values are counts."""
    value = fields.mapping(name)
    inner = Fields(value, fields.path(name))
    return {key: inner.integer(key) for key in value}


def _with_fingerprint(fields: Fields, name: str) -> dict[str, Json]:
    value = fields.mapping(name)
    Fields(value, fields.path(name)).text("fingerprint")
    return value
