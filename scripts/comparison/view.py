"""The data that the page of a comparison shows: findings, plots, tables of scores and changes, completions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rlgkd.scripts._yaml import dump_yaml
from rlgkd.scripts.comparison.findings import Cell, clearly_best, findings, title
from rlgkd.scripts.comparison.panels import panels
from rlgkd.scripts.comparison.plots import Look
from rlgkd.scripts.report.lenient import to_interval
from rlgkd.scripts.report.metrics import DIVERGENCE_LABELS, MARKS, in_report_order, metric_of, verdict

DIVERSITY: Final = ("self_bleu", "distinct1", "distinct2", "distinct3", "entropy", "length", "ended")
"""Measures of diversity and length, which say nothing about quality."""


def comparison_view(results: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template `comparison.html` shows."""
    cells = [cell for cell in results["cells"] if cell["runs"]]
    looks = {cell["name"]: Look(label=title(cell["name"]), number=number) for number, cell in enumerate(cells)}
    names = in_report_order(dict.fromkeys(name for cell in cells for name in cell["scores"]))
    quality = [name for name in names if name not in DIVERSITY and "@" not in name]
    diversity = [*(name for name in DIVERSITY if name in names), *(name for name in names if "@" in name)]
    settings = results["settings"]
    return {
        "title": f"How much teacher: {results['name']}" if list(results["vary"]) == ["alpha"] else results["name"],
        "results": results,
        "settings": settings,
        "findings": findings(results),
        "plots": panels(results, timing, cells, looks),
        "divergence": DIVERGENCE_LABELS.get(settings["divergence"], settings["divergence"]),
        "tokens_requested": _span(cell["values"].get("tokens", settings["tokens"]) for cell in cells),
        "tokens_trained": _span(run["tokens"] for cell in cells for run in cell["runs"]),
        "legend": list(looks.values()),
        "untrained": {name: title(name) for name in results["references"]},
        "marks": MARKS,
        "varied": ", ".join(results["vary"]),
        "quality": _score_table(results, cells, quality),
        "diversity": _score_table(results, cells, diversity),
        "changes": [
            _change_table(cells, baseline, [*quality, *diversity]) for baseline in _shown_baselines(results, cells)
        ],
        "examples": _examples(results, cells),
        "config": dump_yaml(settings),
    }


def _score_table(results: Mapping[str, Any], cells: Sequence[Cell], names: Sequence[str]) -> dict[str, Any]:
    """Return a row for each measure, with a column for start, cells and teacher; the clearly best cell is marked."""
    columns = _in_page_order(results, cells)
    rows = []
    for name in names:
        metric = metric_of(name)
        best = clearly_best(cells, name)
        row = []
        for column, found in columns:
            score = to_interval(found["scores"].get(name))
            row.append(
                {
                    "value": metric.value(score.mean),
                    "bounds": metric.bounds(score.low, score.high),
                    "best": column == best,
                }
            )
        rows.append({"metric": metric, "scores": row})
    return {"columns": [title(name) for name, _ in columns], "rows": rows}


def _shown_baselines(results: Mapping[str, Any], cells: Sequence[Cell]) -> list[str]:
    """Return the baselines that changes are shown against."""
    found = [name for name in dict.fromkeys(results["baselines"]) if any(name in cell["against"] for cell in cells)]
    # Of two cells, the table against the second would repeat the first with its signs changed.
    return found[:1] if len(cells) == 2 else found


def _change_table(cells: Sequence[Cell], baseline: str, names: Sequence[str]) -> dict[str, Any]:
    """Return a row for each measure: every cell's change from the baseline, and the probability that it is better."""
    others = [cell for cell in cells if cell["name"] != baseline]
    rows = []
    for name in names:
        metric = metric_of(name)
        row = []
        for cell in others:
            found = cell["against"].get(baseline, {}).get(name, {})
            change = to_interval(found.get("change"))
            greater = to_interval(found.get("greater"))
            mean, low, high = greater.mean, greater.low, greater.high
            if metric.better < 0:  # to be smaller is to be better
                mean, low, high = 1 - mean, 1 - high, 1 - low
            row.append(
                {
                    "change": metric.change(change.mean),
                    "bounds": metric.bounds(change.low, change.high, between=" to "),
                    "mark": verdict(metric, change),
                    "probability": f"{mean:.2f} ({low:.2f} to {high:.2f})",
                }
            )
        rows.append({"metric": metric, "cells": row})
    return {"name": title(baseline), "cells": [title(cell["name"]) for cell in others], "rows": rows}


def _examples(results: Mapping[str, Any], cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the same prompts with the completions of the start, each cell's first seed, and the teacher."""
    numbers = {cell["name"]: number for number, cell in enumerate(cells)}
    columns = [
        (name, found["runs"][0]["texts"] if name in numbers else found["texts"])
        for name, found in _in_page_order(results, cells)
    ]
    examples = []
    for row, first in enumerate(columns[0][1]):
        completions = []
        for name, texts in columns:
            known = {key: value for key, value in texts[row]["measures"].items() if value is not None}
            completions.append(
                {
                    "name": name,
                    "label": title(name),
                    "number": numbers.get(name),
                    "text": texts[row]["text"],
                    "measures": [(metric_of(key).label, metric_of(key).value(value)) for key, value in known.items()],
                    "cut": texts[row]["stop"] == "length",
                }
            )
        examples.append(
            {
                "key": results["prompts"][row],
                "prompt": first["prompt"].strip(),
                "reference": first["reference"],
                "completions": completions,
            }
        )
    return examples


def _in_page_order(results: Mapping[str, Any], cells: Sequence[Cell]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and content of the students before training, the cells, the teacher."""
    untrained = results["references"].items()
    return [
        *((name, found) for name, found in untrained if name != "teacher"),
        *((cell["name"], cell) for cell in cells),
        *((name, found) for name, found in untrained if name == "teacher"),
    ]


def _span(numbers: Iterable[int]) -> str:
    """Write `90,000`, or `1,004 to 1,030`."""
    found = sorted(set(numbers))
    return " to ".join(f"{number:,}" for number in dict.fromkeys((found[0], found[-1])))
