"""Implementations of a layer for each platform; `qwen.ops.choose` picks one."""

from __future__ import annotations

from typing import Literal

OpsName = Literal["xla", "splash", "cudnn", "amx"]
"""`xla`: any platform. `splash`: TPUs. `cudnn`: NVIDIA GPUs. `amx`: Intel CPUs with AMX."""
