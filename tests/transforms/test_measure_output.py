from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation_dataset.format import POOLINGS, STORAGE_DTYPES, Pooling, StorageDtype
from activation_dataset.record import RecordKind
from tests.activation_dataset.synthetic import make_prompts, write_dataset
from tests.transforms.merges import any_merge, combined
from transforms.measure_output import (
    OutputSize,
    OutputTooLargeError,
    SumSizes,
    check_output_size,
    output_size,
)

LENGTHS = [1, 2, 127, 128, 300, 20_000]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("storage_dtype", STORAGE_DTYPES)
def test_the_files_have_the_bytes_that_were_measured(
    tmp_path: Path, pooling: Pooling, storage_dtype: StorageDtype
):
    metadata = write_dataset(tmp_path, [LENGTHS, [5]], pooling, storage_dtype, hidden=24)
    kind = RecordKind(pooling, storage_dtype, 24)
    prompts = [*make_prompts(LENGTHS, seed=0), *make_prompts([5], seed=1)]
    size = sum((output_size(prompt, kind) for prompt in prompts), OutputSize())
    for layer in (10, 11, 12):
        files = [shard.files[layer] for shard in metadata.shards]
        assert sum((tmp_path / file.path).stat().st_size for file in files) == size.layer
    written = sum(path.stat().st_size for path in tmp_path.glob("*/*.tfrecord"))
    assert size.total(sites=3) == written


@given(st.data())
def test_sizes_add_up_however_they_are_split(data):
    combine, prompts = SumSizes(RecordKind("last", "float32", 8)), make_prompts([1, 2, 3])
    assert data.draw(any_merge(combine, prompts)) == combined(combine, prompts) != OutputSize()


def test_the_limit_counts_all_sites_and_the_prompts():
    size = OutputSize(layer=1_000_000, prompts=500)
    check_output_size(size, 2, None)
    check_output_size(size, 2, 2_000_500)
    with pytest.raises(OutputTooLargeError, match=r"2,000,500 bytes .*--max_output_bytes .*\."):
        check_output_size(size, 2, 2_000_499)
