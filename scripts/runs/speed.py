"""Where the time of a run went, and how much memory it took: for summary.json and the report."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from rlgkd.scripts._peak_memory import peak_mb
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.runs.folder import TIMES
from rlgkd.scripts.runs.tables import read_rows

PARTS: Final = ("sampling", "reward", "gate", "update", "evaluation")
"""Columns time/NAME of times.csv."""
WITHIN: Final = {"reward": "sampling", "gate": "update"}
"""A part -> the part whose seconds have its own in them."""
SEEN_SECONDS: Final = 0.1
HOST_COLUMN, ACCELERATOR_COLUMN = "time/memory_gib", "time/accelerator_memory_gib"


def memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, in GiB, by column of times.csv."""
    found = {HOST_COLUMN: round(peak_mb() / 2**10, 3)}
    if device.type == "cuda":
        found[ACCELERATOR_COLUMN] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return found


def speed(out: Path, tokens: int, evaluating: float, device: torch.device) -> dict[str, Any]:
    """What summary.json holds under `speed`.

    Args:
        out: The run's folder.
        tokens: That the run was trained for.
        evaluating: Seconds of the evaluations before and after training.
        device: The agent's.

    Returns: `tokens_per_second` of training (null without times.csv), `seconds` by part over all updates, also those
    before a run was resumed, none of them counted twice, and the most memory of this process in GiB.
    """
    seconds = _seconds(out / TIMES)
    training = sum(value for part, value in seconds.items() if part != "evaluation")
    seconds["evaluation"] = seconds.get("evaluation", 0.0) + evaluating
    by_part = {name: round(value, 2) for name, value in seconds.items()}
    return {
        "tokens_per_second": round(tokens / training, 1) if training > 0 else None,
        "seconds": by_part,
        **{name.removeprefix("time/"): value for name, value in memory(device).items()},
    }


def spent(metrics: Mapping[str, float]) -> list[str]:
    """What the live line says of an update's seconds by part, if they are long enough to be seen, and of memory."""
    reward = metrics.get("time/reward", 0.0)
    seconds = {
        "sampling": metrics.get("time/sampling", 0.0) - reward,
        "scoring": reward,
        "update": metrics.get("time/update", 0.0),
    }
    parts = [f"{name} {value:.1f} s" for name, value in seconds.items() if value > SEEN_SECONDS]
    held = [metrics[name] for name in (HOST_COLUMN, ACCELERATOR_COLUMN) if name in metrics]
    return [*parts, *([f"{' + '.join(f'{value:.1f}' for value in held)} GiB"] if held else [])]


def _seconds(times: Path) -> dict[str, float]:
    """The sum of each part over the rows of times.csv; nothing if it cannot be read."""
    try:
        names, rows = read_rows(times)
    except (FileNotFoundError, csv.Error):
        return {}
    sums = {}
    for part in PARTS:
        if (column := f"time/{part}") in names:
            sums[part] = float(np.nansum([to_float(row[names.index(column)]) for row in rows]))
    for part, whole in WITHIN.items():
        if part in sums:
            sums[whole] = max(0.0, sums.get(whole, 0.0) - sums[part])
    return sums
