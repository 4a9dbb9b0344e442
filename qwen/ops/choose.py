"""Selection of the operations for a device, once per loaded model."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qwen.config import ModelConfig
from qwen.ops import amx
from qwen.ops.base import Ops
from qwen.ops.cudnn import CudnnOps
from qwen.ops.splash import SplashOps
from qwen.ops.xla import XlaOps


def choose_ops(
    device: jax.Device, dtype: jnp.dtype, config: ModelConfig, model_parts: int = 1
) -> Ops:
    """Return the fastest operations for a model on a device.

    Args:
        device: a device of the mesh.
        dtype: dtype of the parameters.
        config: configuration of the model.
        model_parts: number of devices that a layer is split over.
    """
    if device.platform == "cpu" and amx.fits(config, dtype, model_parts):
        return amx.AmxOps()
    if device.platform == "tpu":
        return SplashOps()
    if device.platform == "gpu" and dtype.itemsize == 2:
        # cuDNN's kernel needs half precision and compute capability 8.0 (A100, L4) or higher.
        major = str(getattr(device, "compute_capability", "")).partition(".")[0]
        if major.isdigit() and int(major) >= 8:
            return CudnnOps()
    return XlaOps()
