"""How the C library hands out the memory in which XLA computes on a CPU."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Has glibc keep memory that is freed, up to the most that was in use, for the next step.

    By default it gives large blocks back to the kernel at once, and XLA asks for them again in
    every program: clearing their pages took a sixth of the time of a step. Does nothing elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        library.mallopt(_M_TOP_PAD, 64 << 20)
