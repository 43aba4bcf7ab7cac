"""The answer of a comparison for the terminal: a row of scores for each cell, then the findings in sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from rlgkd.scripts.comparison.findings import DISTANCE, clearly_best, findings
from rlgkd.scripts.report.formatting import visible
from rlgkd.scripts.report.lenient import to_interval
from rlgkd.scripts.report.metrics import METRICS, in_report_order, metric_of

MOST_MEASURES: Final = 3
"""Columns of measures, besides that of the distance to the teacher; the report has them all."""


def answer_table(results: Mapping[str, Any]) -> Table:
    """Return a `results.json` as a table: start, cells and teacher, each with its mean and 95% interval.

    The columns are the reward, then measures of the user's own and the first others that have a better direction, and
    the distance to the teacher. A cell that is clearly best is bold and has a `*`.
    """
    cells = [cell for cell in results["cells"] if cell["runs"]]
    named = in_report_order(dict.fromkeys(name for cell in cells for name in cell["scores"]))
    own = [name for name in named if name not in METRICS and "@" not in name]  # what the user asked to be measured
    known = [name for name in named if name in METRICS and METRICS[name].better and name != DISTANCE]
    names = sorted([*own, *known], key=lambda name: name != "reward")
    names = [*names[:MOST_MEASURES], *([DISTANCE] if DISTANCE in named else [])]
    best = {name: clearly_best(cells, name) for name in names}
    runs, prompts = max(len(cell["runs"]) for cell in cells), len(results["prompts"])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = f"Seeds: {runs}, prompts: {prompts}; means, 95% intervals; *: clearly the best"
    table.add_column("")
    for name in names:
        table.add_column(metric_of(name).label, justify="right")
    references = results["references"]
    ends = [(name, references[name]) for name in ("start", "teacher") if name in references]
    rows = [*ends[:1], *((cell["name"], cell) for cell in cells), *ends[1:]]
    for row, found in rows:
        scores = [_score(name, found["scores"].get(name), row == best[name]) for name in names]
        table.add_row(Text(visible(row)), *scores)
    return table


def answer_sentences(results: Mapping[str, Any]) -> list[str]:
    """Return the findings as plain sentences, the most important first."""
    return [re.sub(r"\s+", " ", str(finding)) for finding in findings(results)]


def _score(name: str, score: object, is_best: bool) -> Text:
    metric, interval = metric_of(name), to_interval(score)
    bounds = metric.bounds(interval.low, interval.high, between=" to ")
    text = metric.value(interval.mean) + (f"\n({bounds})" if bounds else "")
    return Text(f"*{text}" if is_best else text, style="bold" if is_best else "")
