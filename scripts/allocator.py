"""What the C library does with memory that is freed: by default it goes back to the system, which clears it again.

A step frees and asks for the same tensors over and over. glibc gives blocks back at once that are larger than some
32 MiB, and the end of its heap when much of it is free; each page that is asked for again is then cleared first, which
takes a tenth of a step's time, and half of an evaluation's. Nothing here changes a result.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback

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


class KeepFreedMemory(BaseCallback):
    """`keep_freed_memory`, but for the first update, whose large blocks are the system's, each of its own.

    What is made in it and stays (AdamW's state, oneDNN's kernels) would else lie between tensors that come and go, and
    later ones as large as the head would find no room among them: a heap a tenth larger.
    """

    def __init__(self) -> None:
        """Of one call of `learn`."""
        super().__init__()
        self.rollouts = 0

    def _on_training_start(self) -> None:
        if keep_freed_memory():
            _glibc("malloc_trim")(0)
            _glibc("mallopt")(MMAP_THRESHOLD, APART)

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if self.rollouts == 2:
            keep_freed_memory()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        keep_freed_memory()


def _glibc(name: str) -> Callable[..., int]:
    """A function of the C library, or, if it is another than glibc, one that does nothing and gives 0."""
    if sys.platform == "linux":
        try:
            function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
            return function
        except (OSError, AttributeError):
            pass
    return lambda *_: 0
