"""Long and short documents in windows, where every token must have one vector, even after a kill.

python -m reliability.windows
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from activation_dataset import ActivationDataset
from activation_dataset.verify import verify
from beam_pipeline.flags import build_plan_parser
from beam_pipeline.job import open_job
from beam_pipeline.options import parse_flags
from beam_pipeline.plan import make_plan

SHORTEST, LONGEST = 10, 20_000


def write_documents(path: Path, count: int, seed: int) -> list[np.ndarray]:
    """Write token ids of documents of log-uniform lengths to a Parquet file, and return them."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST + 1), count)).astype(int)
    lengths[:2] = SHORTEST, LONGEST
    documents = [rng.integers(10, 2000, length, dtype=np.int32) for length in lengths]
    table = pa.table({"id": [f"d{n}" for n in range(count)], "input_ids": documents})
    parquet.write_table(table, path, row_group_size=500)
    return documents


def check(out: Path, documents: Sequence[np.ndarray], context_size: int) -> int:
    """Check that each token of each document has one vector; return the number of vectors."""
    dataset = ActivationDataset(out)
    seen = [np.zeros(len(document), np.int64) for document in documents]
    for shard in range(len(dataset.metadata.shards)):
        index = dataset.index(shard)
        starts = index.token_ends - index.token_counts
        for sample, task_id in enumerate(index.task_ids):
            document, offset = int(task_id[1:]), int(index.offsets[sample])
            sample_id = index.sample_ids[sample]
            assert sample_id.endswith(f"#{task_id}@{offset}"), sample_id
            tokens = slice(int(starts[sample]), int(index.token_ends[sample]))
            ids, chosen = index.token_ids[tokens], index.chosen[tokens]
            assert len(ids) <= context_size, sample_id
            expected = documents[document][offset : offset + len(ids)]
            assert np.array_equal(ids, expected), sample_id
            seen[document][offset : offset + len(ids)] += chosen
    wrong = [number for number, counts in enumerate(seen) if (counts != 1).any()]
    assert not wrong, f"documents {wrong[:5]} have tokens with no vector or several"
    return dataset.num_vectors


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.windows", description=__doc__)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--context_size", type=int, default=1024)
    parser.add_argument("--context_overlap", type=int, default=0)
    parser.add_argument("--layer", default="0")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = write_documents(folder / "ids.parquet", options.documents, options.seed)
        tokens = sum(map(len, documents))
        flags = ["--model_path", "random:tiny", "--tasks_file", str(folder / "ids.parquet")]
        flags += ["--layers_to_extract", options.layer, "--pooling", "none", "--no_progress"]
        flags += ["--storage_dtype", "float8_e4m3", "--context_size", str(options.context_size)]
        flags += ["--context_overlap", str(options.context_overlap)]
        plan = make_plan(open_job(parse_flags(flags, build_plan_parser())[0]))
        print(
            f"{len(documents):,} documents of {tokens:,} tokens, {plan.shards.samples:,} windows, "
            f"{plan.slots / plan.shards.tokens:.4f} slots per token"
        )
        one, two = folder / "one", folder / "two"
        command = [sys.executable, "-m", "beam_pipeline", *flags, "--output_dir"]
        started = time.monotonic()
        subprocess.run([*command, str(one)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        assert not verify(one, records=True).problems
        vectors = check(one, documents, options.context_size)
        print(f"one run: {vectors:,} vectors in {seconds:.0f} s, one for each token")
        assert vectors == tokens
        workers = ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]
        killed = subprocess.Popen(
            [*command, str(two), *workers], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(two.glob("layer_*/*.tfrecord")) and killed.poll() is None:
            time.sleep(0.2)
        killed.kill()
        killed.wait()
        before = len(list(two.glob("layer_*/*.tfrecord")))
        subprocess.run([*command, str(two), *workers], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(one / "index")
        files = {path.relative_to(one): path for path in one.rglob("*") if path.is_file()}
        for relative, path in files.items():
            assert (two / relative).read_bytes() == path.read_bytes(), relative
        assert len(files) == len([path for path in two.rglob("*") if path.is_file()])
        print(f"two workers, killed with {before} files finished, and resumed: same bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
