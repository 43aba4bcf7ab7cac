"""What the live page of a run or comparison shows besides its report: how far it is, how fast, what it wrote last."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlgkd.scripts.report.formatting import duration, thousands, visible, whole
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.report.progress_csv import read_table
from rlgkd.scripts.report.run_files import RunFiles
from rlgkd.statistics import Floats

WATCHED: Final = ("config.yaml", "progress.csv", "evaluations.csv", "summary.json", "results.json", "measured.json")
"""Files by which a page knows that there is something new."""
LATEST_TEXTS: Final = 3
TAIL_BYTES: Final = 2**16
"""Bytes at the end of rollouts.jsonl in which the latest texts are looked for."""
TOKENS: Final = "time/total_timesteps"


def version(folder: Path) -> str:
    """A name for the state of a run's or a comparison's files, which changes when they do."""
    state = []
    for path in _watched_files(folder):
        try:
            stat = path.stat()
        except OSError:
            continue
        state.append(f"{path} {stat.st_mtime_ns} {stat.st_size}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]


def _watched_files(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in WATCHED)
    for run in runs_of(folder):
        yield from (run / name for name in WATCHED)


def is_comparison(folder: Path) -> bool:
    """Whether the folder is a comparison's, which has runs under `cells`."""
    return (folder / "cells").is_dir()


def runs_of(comparison: Path) -> list[Path]:
    """The folders of a comparison's runs that were begun."""
    return sorted(config.parent for config in comparison.glob("cells/*/*/config.yaml"))


def progress_of(run: Path, files: RunFiles) -> dict[str, Any]:
    """How far a run is: `share` in [0, 1] or None, and sentences for `state`, `speed` and `texts`."""
    tokens, asked = _last(files.progress.get(TOKENS, ())), to_float(files.config.get("tokens"))
    ended = bool(files.summary)
    known = math.isfinite(tokens) and asked > 0
    state = "Ended" if ended else "Evaluating before training" if not math.isfinite(tokens) else "Training"
    if known:
        state += f": {thousands(tokens)} of {thousands(asked)} tokens, {len(files.progress[TOKENS])} updates"
    return {
        "share": min(1.0, tokens / asked) if known else None,
        "ended": ended,
        "state": state,
        "speed": _speed(run / "times.csv", tokens, asked, ended=ended),
        "texts": latest_texts(run / "rollouts.jsonl"),
    }


def _last(values: Floats | Sequence[float]) -> float:
    return float(values[-1]) if len(values) else math.nan


def _speed(times: Path, tokens: float, asked: float, *, ended: bool) -> str:
    """Tokens a second, the seconds of the newest update by part, the time that is left, memory; "" if not known."""
    try:
        names, rows = read_table(times.read_text(encoding="utf-8", errors="replace"))
    except (OSError, csv.Error):
        return ""
    if not rows:
        return ""
    newest = {name: to_float(value) for name, value in zip(names, rows[-1], strict=True)}
    pieces = []
    if (rate := newest.get("time/tokens_per_second", math.nan)) > 0:
        pieces.append(f"{rate:,.0f} tokens a second")
        if not ended and asked > tokens:
            pieces.append(f"about {duration((asked - tokens) / rate)} of training left")
    for part in ("sampling", "reward", "update"):
        if (seconds := newest.get(f"time/{part}", math.nan)) > 0.05:
            pieces.append(f"{part} {seconds:.1f} s")
    if (gib := newest.get("time/memory_gib", math.nan)) > 0:
        pieces.append(f"{gib:.1f} GiB at the most")
    return ", ".join(pieces)


def latest_texts(rollouts: Path) -> list[dict[str, str]]:
    """The newest texts with their prompts and rewards, the newest first; nothing of what cannot be read."""
    try:
        with rollouts.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found: list[dict[str, str]] = []
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, Mapping) and "completion" in record:
            reward = to_float(record.get("reward"))
            found.append(
                {
                    "prompt": str(record.get("prompt", "")),
                    "text": str(record["completion"]),
                    "reward": f"{reward:.3f}" if math.isfinite(reward) else "",
                }
            )
        if len(found) == LATEST_TEXTS:
            break
    return found


def cells_of(comparison: Path, read: Mapping[Path, RunFiles]) -> list[dict[str, Any]]:
    """The begun runs of a comparison: name, address under the page's, state, and how far."""
    cells = []
    for run in runs_of(comparison):
        files = read[run]
        tokens, asked = _last(files.progress.get(TOKENS, ())), to_float(files.config.get("tokens"))
        measured = (run / "measured.json").exists()
        share = tokens / asked if asked > 0 and math.isfinite(tokens) else 0.0
        cells.append(
            {
                "name": visible(f"{run.parent.name}, {run.name}"),
                "address": f"cells/{run.parent.name}/{run.name}/",
                "state": "measured" if measured else f"{whole(tokens) or 0} of {whole(asked) or '?'} tokens",
                "share": 1.0 if measured else min(1.0, share),
            }
        )
    return cells
