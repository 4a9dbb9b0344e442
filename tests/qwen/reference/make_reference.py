"""Make `reference.npz`: activations of `SMALL` with `varied_weights` in transformers.

Run it in an environment with PyTorch, from the root of the repository::

    python -m tests.qwen.reference.make_reference
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tests.qwen.checkpoints import SMALL, write_checkpoint
from tests.qwen.transformers_model import transformers_model

REFERENCE_FILE = Path(__file__).parent / "reference.npz"
LENGTHS = (1, 5, 40, 19, 130)


def prompts() -> list[np.ndarray]:
    """Return token ids, [tokens] int32 each."""
    generator = np.random.RandomState(1)
    return [generator.randint(0, SMALL.vocab_size, length).astype(np.int32) for length in LENGTHS]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = transformers_model(write_checkpoint(Path(folder)), "float32")
        arrays = {f"prompt_{index}": run(ids[None])[:, 0] for index, ids in enumerate(prompts())}
    np.savez_compressed(REFERENCE_FILE, allow_pickle=False, **arrays)
    print(f"{REFERENCE_FILE.name}: {REFERENCE_FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
