"""Tests of the peak FLOP/s with which the speed of a GPU is compared."""

from __future__ import annotations

import pytest

from benchmarks.gpu_check import peak_of
from qwen.flops import flops_of
from qwen.presets import PRESETS


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10G", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
    ],
)
def test_a_gpu_is_measured_against_its_own_peak(kind: str, teraflops: int) -> None:
    assert peak_of(kind) == teraflops * 1e12


def test_an_unknown_device_has_no_share_of_a_peak() -> None:
    assert peak_of("cpu") is None


def test_the_flops_of_a_prompt_are_those_of_its_matrices() -> None:
    config, tokens = PRESETS["Qwen2.5-0.5B"], 10
    h, i, kv = config.hidden_size, config.intermediate_size, 2 * 64
    weights = h * h + 2 * h * kv + h * h + 3 * h * i
    scores = sum(2 * 64 * 14 * 2 * (position + 1) for position in range(tokens))
    assert flops_of(config, 3, tokens, [tokens]) == 3 * (2 * tokens * weights + scores)
