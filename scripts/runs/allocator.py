"""What the C library does with memory that is freed: by default it goes back to the system, which clears it again.

A step frees and asks for the same tensors over and over. glibc gives blocks back at once that are larger than some
32 MiB, and the end of its heap when much of it is free; each page that is asked for again is then cleared first, which
takes a tenth of a step's time. Nothing here changes a result.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from torch.optim import Optimizer

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
LARGEST = (2**30, 2**25)
"""Bytes of a block that is kept for the next one; glibc before 2.35 takes the second at most."""
APART = 2**18
"""Bytes of a block from which on the first update has it from the system."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it will ask for; returns whether its C library can."""
    mallopt = _glibc("mallopt")
    return any(mallopt(MMAP_THRESHOLD, size) for size in LARGEST) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))


def keep_freed_memory_after_first(optimizer: Optimizer) -> None:
    """`keep_freed_memory` once the optimizer has made a step; till then large blocks are the system's, one by one.

    What is made by then and stays, AdamW's state above all, would else lie between tensors that come and go, and later
    ones as large as the head's gradient would find no room between: a heap that is a tenth larger.
    """

    def keep(*_: object) -> None:
        made.remove()
        keep_freed_memory()

    if keep_freed_memory():
        _glibc("malloc_trim")(0)
        _glibc("mallopt")(MMAP_THRESHOLD, APART)
        made = optimizer.register_step_post_hook(keep)


def _glibc(name: str) -> Callable[..., int]:
    """A function of the C library; if it is another than glibc, one that does nothing and gives 0."""
    if sys.platform == "linux":
        try:
            function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
            return function
        except (OSError, AttributeError):
            pass
    return lambda *_: 0
