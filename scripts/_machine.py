"""The machine that something was measured on, in a line."""

from __future__ import annotations

import datetime
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch


def machine() -> str:
    """Return processor, cores, torch and the day."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, {datetime.date.today().isoformat()}"
