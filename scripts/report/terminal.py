"""The table of a run's measures before and after training, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rlgkd.scripts.report.formatting import visible
from rlgkd.scripts.report.metrics import MARKS
from rlgkd.scripts.report.remarks import judged_rows

STYLES = {"better": "green", "worse": "red", "changed": "cyan"}


def score_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of a `summary.json`: before, after, teacher, change."""
    rows = judged_rows(summary)
    with_teacher = any(math.isfinite(row.teacher.mean) for row in rows)
    table = Table(title=_title(summary), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption = "Changes are paired by prompt; not clear: their 95% interval holds 0"
    table.add_column("Measure")
    for name in ("Before", "After", *(["Teacher"] if with_teacher else []), "Change", "95% interval"):
        table.add_column(name, justify="right")
    table.add_column("Verdict")
    for row in rows:
        scores = [row.before, row.after, *([row.teacher] if with_teacher else [])]
        unit = f" ({row.metric.unit})" if row.metric.unit else ""
        table.add_row(
            Text(visible(row.metric.label) + unit),
            *(Text(row.metric.value(score.mean)) for score in scores),
            Text(row.change_text),
            Text(row.metric.bounds(row.change.low, row.change.high, between=" to ")),
            Text(MARKS[row.mark], style=STYLES.get(row.mark, "dim")),
        )
    return table


def _title(summary: Mapping[str, Any]) -> Text | None:
    name, prompts = summary.get("name"), summary.get("prompts")
    pieces = []
    if name:
        pieces.append(visible(str(name)))
    if prompts:
        pieces.append(f"{prompts} {summary.get('split', '')} prompts".replace("  ", " "))
    return Text(", ".join(pieces)) if pieces else None
