"""The report of a comparison: one HTML file from `results.json` and `timing.json`, with no network.

Everything that a model wrote is escaped, and the page runs no script but its own, as in the report of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from rlgkd import checkpoint
from rlgkd.scripts.comparison.findings import answer, clearly_best, title
from rlgkd.scripts.comparison.panels import panels
from rlgkd.scripts.comparison.plots import Look
from rlgkd.scripts.report.html import template_environment
from rlgkd.scripts.report.lenient import to_interval
from rlgkd.scripts.report.metrics import DIVERGENCE_LABELS, MARKS, METRICS, metric_of, verdict
from rlgkd.statistics import Interval

SPREAD: Final = ("self_bleu", "distinct1", "distinct2", "distinct3", "entropy", "length", "ended")
"""How the texts are, not how good."""


def write_report(out: Path) -> Path:
    """Write `report.html` into the folder of a comparison and return its path."""
    results = json.loads((out / "results.json").read_text())
    timing = json.loads((out / "timing.json").read_text())
    page = template_environment().get_template("comparison.html").render(**view(results, timing))
    checkpoint.atomic_write(out / "report.html", page.encode("utf-8", errors="replace"))
    return out / "report.html"


def view(results: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    cells = [cell for cell in results["cells"] if cell["runs"]]
    looks = {cell["name"]: Look(label=title(cell["name"]), number=n) for n, cell in enumerate(cells)}
    names = list(dict.fromkeys(name for cell in cells for name in cell["scores"]))
    ordered = sorted(names, key=lambda name: list(METRICS).index(name) if name in METRICS else len(METRICS))
    quality = [name for name in ordered if name not in SPREAD and "@" not in name]
    spread = [name for name in (*SPREAD, *(name for name in ordered if "@" in name)) if name in names]
    settings = results["settings"]
    return {
        "title": f"How much teacher: {results['name']}" if list(results["vary"]) == ["alpha"] else results["name"],
        "results": results, "settings": settings, "answers": answer(results),
        "plots": panels(results, timing, cells, looks),
        "divergence": DIVERGENCE_LABELS.get(settings["divergence"], settings["divergence"]),
        "asked": _span(cell["values"].get("tokens", settings["tokens"]) for cell in cells),
        "trained": _span(run["tokens"] for cell in cells for run in cell["runs"]),
        "legend": list(looks.values()), "marks": MARKS, "varied": ", ".join(results["vary"]),
        "quality": _table(results, cells, quality), "spread": _table(results, cells, spread),
        "against": [
            {"name": title(name), "rows": _changes(cells, name, [*quality, *spread]), "cells": [
                title(cell["name"]) for cell in cells if cell["name"] != name
            ]}
            for name in _baselines(results, cells)
        ],
        "examples": _examples(results, cells),
        "config": yaml.safe_dump(settings, sort_keys=False),
    }  # fmt: skip


def _table(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """A row for each measure: start, cells, teacher; the cell that is clearly best is marked."""
    before = {name: found for name, found in results["references"].items() if name != "teacher"}
    after = {name: found for name, found in results["references"].items() if name == "teacher"}
    columns = [*before.items(), *((cell["name"], cell) for cell in cells), *after.items()]
    rows = []
    for name in names:
        metric = metric_of(name)
        best = clearly_best(cells, name)
        scores = [(column, to_interval(found["scores"].get(name))) for column, found in columns]
        rows.append({
            "metric": metric,
            "scores": [
                {"value": metric.value(s.mean), "bounds": metric.bounds(s.low, s.high), "best": column == best}
                for column, s in scores
            ],
        })  # fmt: skip
    return {"columns": [title(name) for name, _ in columns], "rows": rows}


def _baselines(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whom tables of changes are against; of two cells the second table would say the first with its signs turned."""
    found = [name for name in dict.fromkeys(results["baselines"]) if any(name in cell["against"] for cell in cells)]
    return found[:1] if len(cells) == 2 else found


def _span(numbers: Iterable[int]) -> str:
    """`90,000`, or `1,004 to 1,030`."""
    found = sorted(set(numbers))
    return " to ".join(f"{number:,}" for number in dict.fromkeys((found[0], found[-1])))


def _changes(cells: Sequence[Mapping[str, Any]], baseline: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each measure: every cell's paired change from the baseline, and the probability that it is better."""
    rows = []
    for name in names:
        metric, found = metric_of(name), []
        for cell in cells:
            if cell["name"] == baseline:
                continue
            told = cell["against"].get(baseline, {}).get(name, {})
            change, greater = to_interval(told.get("change")), to_interval(told.get("greater"))
            probability = greater if metric.better >= 0 else _mirrored(greater)
            found.append({
                "change": metric.change(change.mean), "bounds": metric.bounds(change.low, change.high, between=" to "),
                "mark": verdict(metric, change),
                "probability": f"{probability.mean:.2f} ({probability.low:.2f} to {probability.high:.2f})",
            })  # fmt: skip
        rows.append({"metric": metric, "cells": found})
    return rows


def _mirrored(score: Interval) -> Interval:
    return Interval(mean=1 - score.mean, low=1 - score.high, high=1 - score.low)


def _examples(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same prompts, and what the start, each cell's first seed and the teacher wrote."""
    writers = [
        *((name, found["texts"]) for name, found in results["references"].items() if name != "teacher"),
        *((cell["name"], cell["runs"][0]["texts"]) for cell in cells),
        *((name, found["texts"]) for name, found in results["references"].items() if name == "teacher"),
    ]
    numbers = {cell["name"]: n for n, cell in enumerate(cells)}
    examples = []
    for row, first in enumerate(writers[0][1]):
        texts = []
        for name, written in writers:
            entry = written[row]
            kept = {key: value for key, value in entry["measures"].items() if value is not None}
            judged = [(metric_of(key).label, metric_of(key).value(value)) for key, value in kept.items()]
            texts.append({
                "name": name, "label": title(name), "number": numbers.get(name), "text": entry["text"],
                "judged": judged, "cut": entry["stop"] == "length",
            })  # fmt: skip
        examples.append({
            "key": results["prompts"][row], "prompt": first["prompt"].strip(), "reference": first["reference"],
            "texts": texts,
        })  # fmt: skip
    return examples
