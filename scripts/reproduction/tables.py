"""Tables of a page, in Markdown, and a measure's values of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlgkd.scripts.comparison.cell_statistics import tables


def cell_table(results: Mapping[str, Any], cell: str, measure: str) -> np.ndarray:
    """Return a measure of a cell of `results.json`, [seeds, prompts]."""
    found = next(entry for entry in results["cells"] if entry["name"] == cell)
    table: np.ndarray = tables(found)[measure]
    return table


def score_table(results: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    """Return the lines of a table with the scores of start, cells and teacher, of the measures that there are."""
    there = [name for name in measures if name in results["cells"][0]["scores"]]
    rows = {"start": results["references"]["start"]["scores"]}
    rows |= {cell["name"]: cell["scores"] for cell in results["cells"]}
    rows["teacher"] = results["references"]["teacher"]["scores"]
    lines = table_head("run", there)
    for name, scores in rows.items():
        lines.append(f"| {name} | {' | '.join(_score_text(scores.get(measure)) for measure in there)} |")
    return lines


def table_head(first: str, columns: Sequence[str]) -> list[str]:
    """Return the two lines that a table begins with."""
    return [f"| {first} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]


def _score_text(score: Mapping[str, Any] | None) -> str:
    if score is None or score["mean"] is None:
        return ""
    return f"{score['mean']:.3f} ± {(score['high'] - score['low']) / 2:.3f}"
