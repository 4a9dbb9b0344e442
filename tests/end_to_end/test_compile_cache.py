"""Compiled programs in a bucket, which later workers reuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from google.cloud.storage import Bucket

from tests.conftest import ROOT
from tests.end_to_end.emulator import BUCKET, address, bucket

__all__ = ["address", "bucket"]

WORKER = """
import collections, json, sys
import jax
from qwen.compile_cache import use_compile_cache
from qwen.extractor import ActivationExtractor

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
use_compile_cache(sys.argv[1])
ActivationExtractor.load(sys.argv[2], layers=[0, 1])(["The residual stream"])
print(json.dumps(events))
"""


def work(checkpoint: Path) -> Counter[str]:
    """Return the counts of JAX's cache events in a new process."""
    result = subprocess.run(
        [sys.executable, "-c", WORKER, f"gs://{BUCKET}/compiled", str(checkpoint)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    events = json.loads(result.stdout)
    return Counter({name.rpartition("/")[2]: count for name, count in events.items()})


def test_the_second_worker_finds_what_the_first_has_compiled(bucket: Bucket, checkpoint: Path):
    first = work(checkpoint)
    assert first["cache_misses"] > 0
    stored = [blob.name for blob in bucket.list_blobs(prefix="compiled/")]
    assert len(stored) == first["cache_misses"]
    second = work(checkpoint)
    assert second["cache_misses"] == 0
    assert second["cache_hits"] == first["cache_hits"] + first["cache_misses"]
