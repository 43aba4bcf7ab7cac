"""Tables of a page, in Markdown, and a measure's values of a cell.

An entry is a cell as in `results.json` (rlgkd.scripts.comparison.cell_statistics): a name and runs, each with its seed
and its measures. One without runs is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlgkd.scripts.comparison.cell_statistics import paired_change, scores, tables
from rlgkd.statistics import Interval

Entry = Mapping[str, Any]


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
    for name, found in rows.items():
        lines.append(f"| {name} | {' | '.join(_score_text(found.get(measure)) for measure in there)} |")
    return lines


def entry_table(first: str, entries: Sequence[Entry], measures: Mapping[str, str]) -> list[str]:
    """Return the lines of a table with the scores of entries; `measures` are name -> heading."""
    lines = table_head(first, ["seeds", *measures.values()])
    for entry in entries:
        found = scores(entry)
        cells = [_interval_text(found[name]) if name in found else "" for name in measures]
        lines.append(f"| {entry['name']} | {len(entry['runs']) or 'missing'} | {' | '.join(cells)} |")
    return lines


def missing_line(missing: Sequence[str]) -> list[str]:
    """Return the line that names what is missing, and an empty one; nothing if nothing is."""
    return [f"Missing so far: {', '.join(missing)}.", ""] if missing else []


def change_table(first: str, pairs: Sequence[tuple[Entry, Entry]], measures: Mapping[str, str]) -> list[str]:
    """Return the lines of a table with the paired changes of pairs, the first less the second.

    A star marks an interval that excludes zero.
    """
    lines = table_head(first, list(measures.values()))
    for ours, theirs in pairs:
        changes = [paired_change(ours, theirs, name) for name in measures]
        cells = [change_text(change) if change.mean == change.mean else "" for change in changes]
        lines.append(f"| {ours['name']} less {theirs['name']} | {' | '.join(cells)} |")
    return lines


def change_text(change: Interval) -> str:
    """Return `+0.012 (0.003 to 0.021) *`, with a star if the interval excludes zero."""
    return f"{change.mean:+.3f} ({change.low:.3f} to {change.high:.3f}){' *' if change.sign else ''}"


def texts_side_by_side(entries: Sequence[Entry], texts: int) -> list[str]:
    """Return the lines of the first held-out prompts: the reference, and what each entry's first run has written."""
    shown = [(entry["name"], entry["runs"][0]["texts"]) for entry in entries if entry["runs"]]
    lines: list[str] = []
    for number in range(min(texts, *(len(records) for _, records in shown)) if shown else 0):
        record = shown[0][1][number]
        lines += [f"**{number + 1}.** {_code(record['prompt'])}", "", *table_head("", ["text"])]
        lines.append(f"| reference | {_code(record['reference'])} |")
        lines += [f"| {name} | {_code(records[number]['text'])} |" for name, records in shown]
        lines.append("")
    return lines


def _code(text: str) -> str:
    """Return a text in one line that Markdown leaves as it is."""
    ticks = "``" if "`" in text else "`"
    return f"{ticks} {' '.join(text.split()).replace('|', chr(92) + '|')} {ticks}" if text.strip() else "(nothing)"


def _interval_text(score: Interval) -> str:
    return f"{score.mean:.3f} ± {(score.high - score.low) / 2:.3f}"


def table_head(first: str, columns: Sequence[str]) -> list[str]:
    """Return the two lines that a table begins with."""
    return [f"| {first} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]


def _score_text(score: Mapping[str, Any] | None) -> str:
    if score is None or score["mean"] is None:
        return ""
    return _interval_text(Interval(mean=score["mean"], low=score["low"], high=score["high"]))
