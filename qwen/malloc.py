"""Settings of the C library's allocator, from which XLA takes its memory on a CPU."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step, up to the peak of its use.

    By default it returns large blocks to the kernel at once and XLA asks for them again in every
    program: clearing their pages took a sixth of the time of a step. Does nothing on other systems.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        library.mallopt(_M_TOP_PAD, 64 << 20)
