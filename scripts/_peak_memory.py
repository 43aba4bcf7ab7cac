"""The most memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_mb() -> float:
    """Return the most memory that this process held, in MiB."""
    # On Linux not by getrusage: its peak outlives exec, so a child of a large process would begin with that one's.
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
