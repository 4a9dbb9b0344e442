"""Making the kernels of a library known to JAX."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib.util import find_spec

import jax


def register(available: str, kernels: Mapping[str, str]) -> bool:
    """Registers the kernels, if they were built and this machine can run them.

    Args:
      available: the library's function that says whether the machine can.
      kernels: symbols of the library, by the names under which JAX calls them.
    """
    spec = find_spec("qwen.ops.amx.library")
    if spec is None or spec.origin is None:
        return False
    library = ctypes.CDLL(spec.origin)
    if not getattr(library, available)():
        return False
    for name, symbol in kernels.items():
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return True
