"""What the C library does with memory that is freed: by default it goes back to the system, which clears it again.

A step frees and asks for the same tensors over and over. glibc gives blocks back at once that are larger than some
32 MiB, and the end of its heap when much of it is free; each page that is asked for again is then cleared first, which
takes a tenth of a step's time. Nothing here changes a result.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
LARGEST = (2**30, 2**25)
"""Bytes of a block that is kept for the next one; glibc before 2.35 takes the second at most."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it will ask for; returns whether its C library can."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    return any(mallopt(MMAP_THRESHOLD, size) for size in LARGEST) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))
