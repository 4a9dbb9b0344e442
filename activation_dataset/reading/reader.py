"""Dataset opened for reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from activation_dataset.damage import DatasetError, advice, with_advice
from activation_dataset.example import ExampleError, decode_example
from activation_dataset.format import Sample
from activation_dataset.reading import provenance
from activation_dataset.reading.batches import Batches
from activation_dataset.reading.shards import Shards, check_count
from activation_dataset.reading.vectors import Dtype, Normalize, VectorFormat, Vectors
from activation_dataset.record import RecordKind
from activation_dataset.sites import Site
from activation_dataset.storage_dtype import to_float32
from activation_dataset.tfrecord import CorruptRecordError, read_records

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class ActivationRecord(Sample):
    """Record of one sample at one site.

    `Sample` describes the other attributes.

    Attributes:
        stored: [row elements], or [vectors, row elements] with pooling "none", as in
            `storage_dtype`; a read-only view that may be unaligned.
    """

    stored: NDArray[Any] = field(kw_only=True)

    @property
    def activation(self) -> NDArray[np.float32]:
        """Vectors as aligned float32, [hidden] or [vectors, hidden]."""
        return np.require(to_float32(self.stored), requirements="A")


class ActivationDataset(Shards):
    """Complete dataset, opened for reading.

    The path is a local folder or a URL that fsspec can open. Opening reads only metadata.json.
    Samples are numbered in the order of the shards, the same at every site. A process that receives
    a pickled dataset opens it again::

        dataset = ActivationDataset("activations")
        dataset.layers                         # (10, 11, ..., 23)
        dataset[10][0].activation              # [hidden] float32, random access
        dataset["blocks.10.hook_mlp_out"]      # another hook point, if it was captured
        for record in dataset.records(10): ... # in order

    Raises:
        DatasetError: if the folder has no complete dataset of a known schema version.
    """

    def __getitem__(self, site: Site) -> LayerRecords:
        """Return the records of a site, given a layer's number or the name of another site."""
        return LayerRecords(self, self.metadata.run.site(site))

    def __repr__(self) -> str:
        return f"ActivationDataset({self.path!r}: {len(self)} samples, layers {self.layers})"

    def __reduce__(self) -> tuple[type[ActivationDataset], tuple[str]]:
        return ActivationDataset, (self.path,)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layer numbers, ascending."""
        return self.metadata.run.layers_extracted

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites of the dataset, see `Site`."""
        return self.metadata.run.sites

    def batches(self, sites: Site | Sequence[Site], batch_size: int, **options: Any) -> Batches:
        """Return shuffled batches for training. `Batches` describes the options."""
        return Batches(self, sites, batch_size, **options)

    def blocks(
        self,
        sites: Site | Sequence[Site],
        *,
        dtype: Dtype = "float32",
        normalize: Normalize | None = None,
        shard: int | None = None,
    ) -> Iterator[Vectors]:
        """Yield all vectors in order, in blocks of about 1 MiB.

        This is the fastest way to read a site.

        Args:
            sites: a layer's number, the name of another site, or a sequence of sites of one width.
                With a sequence, values are [n, sites, hidden], the same tokens at every site.
            dtype: dtype of the values.
            normalize: scaling of the values.
            shard: number of the shard to read; None for all.

        Raises:
            KeyError: if the dataset does not have a site.
            ValueError: if another argument is not allowed for this dataset.
            IndexError: if the dataset does not have the shard.
            CorruptRecordError: if a CRC does not match or a file is truncated. The vectors yielded
                before are valid.
            DatasetError: if a file is missing, or another dataset was written to the folder since
                it was opened.
        """
        wanted = VectorFormat.of(self.metadata, sites, dtype, normalize)
        rows = max(1, _BLOCK_BYTES // (len(wanted.sites) * wanted.hidden * wanted.dtype.itemsize))
        unchanged = wanted.single and wanted.factors == (1.0,)
        shards = self._chosen(shard)
        stamps = self.stamps(self.layer_paths(wanted.sites, shards))
        size = self.folder.read_bytes
        chunks = (chunk for each in shards for chunk in self.chunks(each, size))
        last = None
        try:
            for chunk, stored in self.read_chunks(chunks, wanted.sites):
                if last not in (None, chunk.shard):
                    self.check_unchanged()
                last = chunk.shard
                numbers = np.arange(chunk.numbers.start, chunk.numbers.stop)
                for start in range(0, len(numbers), rows):
                    part = stored[:, start : start + rows]
                    if unchanged and part.itemsize == wanted.dtype.itemsize:
                        values = part[0].view(wanted.dtype)
                    else:
                        values = np.empty(wanted.shape(part.shape[1]), wanted.dtype)
                        wanted.fill(values, part)
                    yield Vectors(values, numbers[start : start + rows], self)
        except (CorruptRecordError, DatasetError):
            self.check_unchanged(stamps)  # This error is clearer if a file changed.
            raise
        self.check_unchanged(stamps)

    def records(self, site: Site, shard: int | None = None) -> Iterator[ActivationRecord]:
        """Yield the records of a site in order, of all shards or of one.

        Raises:
            CorruptRecordError: if a record is damaged, or the number of records in a file differs
                from metadata.json.
            DatasetError: if a file is missing, or another dataset was written to the folder since
                it was opened.
        """
        site = self.metadata.run.site(site)
        decode = partial(_decode, self.metadata.run.record_kind(site))
        for each in self._chosen(shard):
            entry = self.metadata.shards[each]
            path = entry.files[site].path
            stamps = self.stamps([path])
            count = 0
            with with_advice(self.folder, path), self.folder.open(path) as stream:
                for record in read_records(stream, path, decode):
                    count += 1
                    if count <= entry.samples:
                        yield record
                check_count(path, count, entry.samples, stream.tell())
            self.check_unchanged(stamps)

    def sample(self, site: Site, sample: int) -> ActivationRecord:
        """Read one record by random access.

        Raises:
            IndexError: if the dataset does not have the sample.
            CorruptRecordError: if the record is damaged.
            DatasetError: if a file is missing, or another dataset was written to the folder since
                it was opened.
        """
        shard, number = self.shard_of(sample)
        file = self.layer_file(self.metadata.run.site(site), shard)
        offset = int(file.record_starts[number])
        data = file.record(number)
        try:
            record = _decode(file.kind, data)
        except ExampleError as error:
            place = (file.path, number, offset, str(error))
            raise CorruptRecordError(*place, advice(self.folder)) from None
        if self.folder.local:  # Elsewhere, each check costs a request.
            self.check_unchanged()
        return record

    where = provenance.where
    trace = provenance.trace

    def _chosen(self, shard: int | None) -> Sequence[int]:
        count = len(self.metadata.shards)
        if shard is not None and not 0 <= shard < count:
            raise IndexError(f"shard {shard} is not in 0..{count - 1}")
        return range(count) if shard is None else [shard]


def _decode(kind: RecordKind, data: memoryview) -> ActivationRecord:
    example = decode_example(data)
    return ActivationRecord(**vars(example.sample), stored=kind.activation(example))


class LayerRecords(Sequence[ActivationRecord]):
    """Records of one site: a map-style dataset for PyTorch, and a data source for Grain."""

    def __init__(self, dataset: ActivationDataset, site: Site) -> None:
        self._dataset, self.site = dataset, site

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return the record at an index, which may be negative, or a list for a slice."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._dataset.sample(self.site, index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[ActivationRecord]:
        return self._dataset.records(self.site)

    def __repr__(self) -> str:
        # Grain compares this text with the text in a checkpoint.
        return f"LayerRecords({self._dataset.path!r}, site {self.site})"
