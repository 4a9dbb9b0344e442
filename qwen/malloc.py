"""Settings of the C library's allocator, which XLA uses on a CPU."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step.

    By default, glibc returns large blocks to the kernel, and XLA allocates them again in every
    program. Clearing their pages took a sixth of the time of a step. Does nothing on other systems.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        library.mallopt(_M_TOP_PAD, 64 << 20)
