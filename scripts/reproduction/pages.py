"""The files of results.md and results.json in a folder of docs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd import checkpoint
from rlgkd.scripts._machine import machine
from rlgkd.scripts.comparison.cell_statistics import scores
from rlgkd.scripts.comparison.results import plain_intervals
from rlgkd.scripts.reproduction.tables import Entry


def kept_scores(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what results.json keeps of entries: name -> measure -> interval."""
    return {one["name"]: plain_intervals(scores(one)) for one in entries}


def write_results(
    docs: Path, *, script: str, title: str, tasks: Mapping[str, Sequence[str]], kept: Mapping[str, Any]
) -> Path:
    """Write results.md, which says by which script and on which machine, and results.json; return the page's path.

    Args:
        docs: The folder.
        script: The script's name.
        title: The page's.
        tasks: Task -> its lines.
        kept: What results.json holds.
    """
    lines = [f"<!-- written by scripts/{script} -->", "", f"# {title}", "", f"{machine()}.", ""]
    for name, own in tasks.items():
        lines += [f"## {name}", "", *own, ""]
    checkpoint.atomic_write(docs / "results.json", json.dumps(kept, indent=1) + "\n")
    checkpoint.atomic_write(docs / "results.md", "\n".join(lines).rstrip() + "\n")
    return docs / "results.md"
