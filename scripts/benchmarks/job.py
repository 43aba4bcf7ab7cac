"""What the processes share that `rlgkd benchmark` times: the job they are given, and the memory they held."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """A workload: which step, of which size."""

    student: str
    teacher: str
    """Folders of models; the end token is one that is hardly ever sampled."""
    prompts: Sequence[str]
    """Taken in order, over and over."""
    kind: str
    """distill, gkd, rl or generate."""
    batch: int
    """Sequences a step."""
    group: int
    """Of them to a prompt."""
    new_tokens: int
    """Of every sequence."""
    steps: int
    warmup: int
    """Steps before those that are timed."""
    threads: int
    seed: int
    bounded: bool = True
    """Whether the bound is measured too; it takes as long as some steps."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of rlgkd's agent, over those of the workload."""


def peak_mb() -> float:
    """Most memory that this process held, in MiB.

    On Linux not by getrusage: its peak outlives exec, so a child of a large process would begin with that one's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
