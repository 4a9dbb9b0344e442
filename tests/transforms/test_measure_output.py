from collections import Counter
from pathlib import Path

import pytest

from activation_dataset.format import POOLINGS, Pooling
from activation_dataset.storage_dtype import STORAGE_DTYPES, StorageDtype
from tests.activation_dataset.synthetic import make_prompts, write_dataset
from tests.transforms.merges import combined
from transforms.measure_output import SumSizes

LENGTHS = [1, 2, 127, 128, 300, 20_000]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("storage_dtype", STORAGE_DTYPES)
def test_the_files_have_the_bytes_that_were_measured(
    tmp_path: Path, pooling: Pooling, storage_dtype: StorageDtype
):
    metadata = write_dataset(tmp_path, [LENGTHS, [5]], pooling, storage_dtype, 24, widths={11: 600})
    prompts = [*make_prompts(LENGTHS, seed=0), *make_prompts([5], seed=1)]
    kinds = Counter(map(metadata.run.record_kind, metadata.run.sites))
    size = combined(SumSizes(kinds), prompts)
    written = {path: path.stat().st_size for path in tmp_path.glob("*/*.tfrecord")}
    assert size.total == sum(written.values())
    assert size.prompts == sum(written[path] for path in tmp_path.glob("prompts/*"))
