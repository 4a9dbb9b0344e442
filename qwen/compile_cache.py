"""Cache of compiled programs on disk or in a bucket, so that later processes need not compile."""

from __future__ import annotations

import os

import jax


def use_compile_cache(folder: str) -> None:
    """Make this process cache compiled programs in a local or `gs://` folder.

    JAX keys an entry by the program, its options, the compiler's version and the hardware, so runs
    that differ in any of these can share a folder. Call this before the first compilation.
    """
    # If TensorFlow is installed, JAX would import it to reach a bucket.
    os.environ.setdefault("EPATH_USE_TF", "false")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
    # By default, JAX skips programs that compile in under a second; a run has dozens of these.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
