"""Tokens per second on a GPU, compared with Hugging Face with SDPA on the same GPU.

Both capture the last-token residual stream of layers 10 to 23 of Qwen2.5-0.5B's shape with random
weights in bfloat16. All prompts of a run have the same length, so there is no padding. Runs
alternate; the results are ratios of paired runs. Before the runs, the script compares the GPU's
operations with XLA's.

Without a GPU, the script runs a tiny model on the CPU as a test of the script.

    make gpu-check
    python -m benchmarks.gpu_check --json gpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

# JAX and PyTorch share the GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from activation_dataset.sites import Site
from benchmarks.torch_model import torch_model
from qwen import ActivationExtractor
from qwen.batching import TOKENS_PER_BATCH_ROW
from qwen.flops import flops_of
from qwen.ops.xla import XlaOps
from qwen.presets import PRESETS

LAYERS = tuple(range(10, 24))
LEAST_RATIO, LEAST_SHARE_OF_PEAK = 1.5, 0.45
MOST_ERROR = 0.05
"""Maximum relative L2 distance of a bfloat16 vector between the GPU's operations and XLA's."""

PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bfloat16 FLOP/s from data sheets, by part of the device name; the first match applies."""

Prompts = Sequence[np.ndarray]
Runner = Callable[[Prompts], None]


@dataclass(frozen=True)
class Size:
    """Size of a measurement.

    Attributes:
        preset: name of a shape in `qwen/presets`.
        lengths: prompt lengths in tokens; each is measured separately.
        slots: number of token slots per step.
        tokens: number of tokens per run.
    """

    preset: str
    lengths: tuple[int, ...]
    slots: int
    tokens: int


ON_GPU = Size("Qwen2.5-0.5B", (512, 1024, 2048, 4096), 16_384, 262_144)
ON_CPU = Size("tiny", (64, 256), 512, 2048)


@dataclass(frozen=True)
class Result:
    """Medians at one prompt length.

    Attributes:
        length: prompt length in tokens.
        tokens_per_second: speed of this project.
        share_of_peak: share of the device's peak FLOP/s; None if the peak is unknown.
        hugging_face_tokens_per_second: speed of Hugging Face; None if it did not run.
        ratio: speed relative to Hugging Face; None if Hugging Face did not run.
    """

    length: int
    tokens_per_second: float
    share_of_peak: float | None
    hugging_face_tokens_per_second: float | None
    ratio: float | None

    def line(self) -> str:
        """Return the result as a line of text."""
        text = f"  S = {self.length:5}  {self.tokens_per_second:10,.0f} tokens/s"
        if self.share_of_peak is not None:
            text += f"  {self.share_of_peak:5.1%} of peak"
        if self.ratio is not None:
            text += (
                f"  Hugging Face {self.hugging_face_tokens_per_second:10,.0f} tokens/s"
                f"  ratio {self.ratio:.2f}"
            )
        return text


def prompts_of(length: int, count: int, vocabulary: int) -> Prompts:
    """Return `count` prompts of random token ids, [length] int32 each."""
    rng = np.random.default_rng(length)
    return list(rng.integers(0, vocabulary, (count, length), dtype=np.int32))


def extractor_of(size: Size) -> ActivationExtractor:
    """Return this project's extractor on one device."""
    return ActivationExtractor.load(
        f"random:{size.preset}",
        LAYERS,
        pooling="last",
        compute_dtype="bfloat16",
        batch_size=max(1, size.slots // TOKENS_PER_BATCH_ROW),
        mesh_shape=(1, 1),
    )


def ours(size: Size) -> Runner:
    """Return a runner of this project's extractor."""
    extractor = extractor_of(size)

    def run(prompts: Prompts) -> None:
        for _ in extractor.extract(prompts):
            pass

    return run


def hugging_face(size: Size, device: str) -> Runner:
    """Return a runner of full batches with SDPA and a forward hook on each layer."""
    import torch

    model = torch_model(size.preset, None, "bfloat16").to(device)
    captured: dict[int, Any] = {}

    def hook(layer: int) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            captured[layer] = hidden[:, -1].float()

        return keep

    for layer in LAYERS:
        model.layers[layer].register_forward_hook(hook(layer))

    def run(prompts: Prompts) -> None:
        batch = max(1, size.slots // len(prompts[0]))
        for start in range(0, len(prompts), batch):
            ids = torch.from_numpy(np.stack(prompts[start : start + batch])).long().to(device)
            with torch.inference_mode():
                model(ids, use_cache=False)
            for vectors in captured.values():
                vectors.cpu()

    return run


def seconds_of(run: Runner, prompts: Prompts) -> float:
    """Return the seconds that a run over the prompts takes."""
    started = time.perf_counter()
    run(prompts)
    return time.perf_counter() - started


def measure(
    size: Size, length: int, runners: dict[str, Runner], rounds: int, peak: float | None
) -> Result:
    """Run all runners alternately, without counting the first round, which compiles."""
    config, count = PRESETS[size.preset], max(1, size.tokens // length)
    prompts = prompts_of(length, count, config.vocab_size)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 1):
        for name, run in runners.items():
            took = seconds_of(run, prompts)
            if number:
                seconds[name].append(took)
    took, tokens = statistics.median(seconds["ours"]), count * length
    # With `last` pooling, the highest layer computes little besides its keys and values.
    flops = count * flops_of(config, LAYERS[-1], length, [length])
    theirs = seconds.get("hugging face")
    return Result(
        length=length,
        tokens_per_second=tokens / took,
        share_of_peak=None if peak is None else flops / took / peak,
        hugging_face_tokens_per_second=tokens / statistics.median(theirs) if theirs else None,
        ratio=statistics.median(b / a for a, b in zip(seconds["ours"], theirs, strict=True))
        if theirs
        else None,
    )


def captured_by(
    extractor: ActivationExtractor, prompts: Prompts
) -> dict[tuple[Site, int], np.ndarray]:
    """Return vectors [hidden] by site and sample."""
    return {
        (site, sample): vectors[row]
        for captured in extractor.extract(prompts)
        for site, vectors in captured.vectors.items()
        for row, sample in enumerate(captured.samples)
    }


def worst_error(size: Size) -> float:
    """Return the largest relative L2 distance between the device's operations and XLA's."""
    rng = np.random.default_rng(0)
    vocabulary = PRESETS[size.preset].vocab_size
    prompts = [rng.integers(0, vocabulary, n, dtype=np.int32) for n in rng.integers(1, 500, 12)]
    found = captured_by(extractor_of(size), prompts)
    with mock.patch("qwen.extractor.choose_ops", return_value=XlaOps()):
        expected = captured_by(extractor_of(size), prompts)
    return max(
        float(np.linalg.norm(found[key] - expected[key]) / np.linalg.norm(expected[key]))
        for key in expected
    )


def peak_of(device_kind: str) -> float | None:
    """Return the peak bfloat16 FLOP/s of a device by its name; None if it is not in the table."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_kind), None)


def torch_device(platform: str) -> str | None:
    """Return the PyTorch device that corresponds to JAX's; print the reason if there is none."""
    if find_spec("torch") is None:
        print("gpu-check: PyTorch is not installed; skipping Hugging Face")
        return None
    import torch

    if platform == "gpu" and not torch.cuda.is_available():
        print("gpu-check: this PyTorch does not see the GPU; skipping Hugging Face")
        return None
    return "cuda" if platform == "gpu" else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = jax.local_devices()[0]
    size = ON_GPU if device.platform == "gpu" else ON_CPU
    if size is ON_CPU:
        print("gpu-check: JAX sees no GPU (requirements/cuda.txt has the packages for one)")
        print("gpu-check: running a tiny model on the CPU; its figures say nothing about a GPU")
    print(f"{device.device_kind}, {size.preset}, {size.tokens} tokens per run")
    error = worst_error(size)
    print(f"  relative error of the device's operations compared with XLA's: {error:.4f}")
    runners = {"ours": ours(size)}
    if (beside := torch_device(device.platform)) is not None:
        runners["hugging face"] = hugging_face(size, beside)
    results = []
    for length in size.lengths:
        results.append(
            measure(size, length, runners, arguments.rounds, peak_of(device.device_kind))
        )
        print(results[-1].line(), flush=True)
    if size is ON_GPU:
        print(f"    targets: {LEAST_SHARE_OF_PEAK:.0%} of the peak, a ratio of {LEAST_RATIO}")
    if arguments.json:
        report = {
            "device": device.device_kind,
            "size": asdict(size),
            "worst_error": error,
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if error > MOST_ERROR:
        raise SystemExit(
            f"gpu-check: the device's operations have a relative error of {error:.3f}, "
            f"at most {MOST_ERROR} is allowed"
        )


if __name__ == "__main__":
    main()
