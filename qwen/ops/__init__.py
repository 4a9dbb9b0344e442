"""How a platform computes a layer; `choose_ops` in `qwen.ops.choose` picks the operations."""

from __future__ import annotations

from typing import Literal

OpsName = Literal["xla", "splash", "cudnn", "amx"]
"""`xla`: any platform. `splash`: TPUs. `cudnn`: NVIDIA GPUs. `amx`: Intel CPUs with AMX."""
