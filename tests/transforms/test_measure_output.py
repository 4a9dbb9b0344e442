from pathlib import Path

import pytest

from activation_dataset.format import POOLINGS, STORAGE_DTYPES, Pooling, StorageDtype
from activation_dataset.record import RecordKind
from tests.activation_dataset.synthetic import make_prompts, write_dataset
from tests.transforms.merges import combined
from transforms.measure_output import SumSizes

LENGTHS = [1, 2, 127, 128, 300, 20_000]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("storage_dtype", STORAGE_DTYPES)
def test_the_files_have_the_bytes_that_were_measured(
    tmp_path: Path, pooling: Pooling, storage_dtype: StorageDtype
):
    metadata = write_dataset(tmp_path, [LENGTHS, [5]], pooling, storage_dtype, hidden=24)
    kind = RecordKind(pooling, storage_dtype, 24)
    prompts = [*make_prompts(LENGTHS, seed=0), *make_prompts([5], seed=1)]
    size = combined(SumSizes(kind), prompts)
    for layer in (10, 11, 12):
        files = [shard.files[layer] for shard in metadata.shards]
        assert sum((tmp_path / file.path).stat().st_size for file in files) == size.layer
    written = sum(path.stat().st_size for path in tmp_path.glob("*/*.tfrecord"))
    assert size.total(sites=3) == written
