"""Mixture of experts on several devices, for different preferences of the router.

The number of devices is fixed when JAX starts, so this file also runs as a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from qwen.config import ExpertsConfig
from qwen.layers.experts import Experts
from qwen.mesh import MODEL_AXIS, make_mesh
from qwen.ops.xla import XlaOps

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ExpertsConfig(num_experts=8, num_experts_per_tok=3, intermediate_size=16)
HIDDEN, TOKENS = 32, 700

PREFERENCES = ((), (0, 1, 2), (5, 6, 7))
"""Experts that the router prefers. If all are on one device, that device has several times the
token-expert pairs of a round."""


def differences() -> list[float]:
    """Return the relative L2 distance of 8 and 2 devices from one device, for each preference."""
    jax.config.update("jax_num_cpu_devices", 8)
    generator = np.random.default_rng(0)
    graph, state = nnx.split(Experts(CONFIG, HIDDEN, jnp.dtype(jnp.float32)))
    state = jax.tree.map(
        lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape, np.float32)), state
    )
    split = jax.tree.map(lambda leaf: P(MODEL_AXIS) if leaf.ndim == 3 else P(), state)

    def run(state: nnx.State, x: jax.Array, logits: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, logits, XlaOps().mlps_of_groups)

    found = []
    for preferred in PREFERENCES:
        x = generator.standard_normal((1, TOKENS, HIDDEN), np.float32)
        logits = generator.standard_normal((1, TOKENS, CONFIG.num_experts), np.float32)
        logits[..., list(preferred)] += 10
        outputs = {}
        for devices in (1, 2, 8):
            mesh = make_mesh((1, devices), jax.devices())
            sharded = jax.shard_map(
                run, mesh=mesh, in_specs=(split, P(), P()), out_specs=P(), check_vma=False
            )
            outputs[devices] = np.asarray(jax.jit(sharded)(state, x, logits))
        for devices in (2, 8):
            distance = np.linalg.norm(outputs[devices] - outputs[1])
            found.append(float(distance / np.linalg.norm(outputs[1])))
    return found


def test_devices_that_the_router_prefers_or_leaves_out_change_nothing() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.qwen.test_experts"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=400,
        stdout=subprocess.PIPE,
    )
    found = json.loads(finished.stdout)
    assert len(found) == 2 * len(PREFERENCES)
    assert max(found) < 1e-5


if __name__ == "__main__":
    print(json.dumps(differences()))
