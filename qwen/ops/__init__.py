"""Sets of operations that compute a layer, by platform; `qwen.ops.choose` selects one."""

from __future__ import annotations

from typing import Literal

OpsName = Literal["xla", "splash", "cudnn", "amx"]
"""Name of a set of operations: `xla` for any platform, `splash` for TPUs, `cudnn` for NVIDIA GPUs
and `amx` for Intel CPUs with AMX."""
