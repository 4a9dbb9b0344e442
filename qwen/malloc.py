"""Settings of the C library's allocator, which XLA uses on CPUs."""

from __future__ import annotations

import ctypes
import sys

# From <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step, up to the peak usage.

    By default, glibc returns large blocks to the kernel at once, and XLA allocates them again in
    every program; clearing their pages took a sixth of the time of a step. On systems without glibc
    this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        library.mallopt(_M_TOP_PAD, 64 << 20)
