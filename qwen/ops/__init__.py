"""Operations with which platforms compute a layer; `qwen.ops.choose` selects them."""

from __future__ import annotations

from typing import Literal

OpsName = Literal["xla", "splash", "cudnn", "amx"]
"""Sets of operations: `xla` for any platform, `splash` for TPUs, `cudnn` for NVIDIA GPUs and `amx`
for Intel CPUs with AMX."""
