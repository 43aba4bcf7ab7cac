"""The report of a comparison: one HTML file from `results.json` and `timing.json`, with no network.

Everything that a model wrote is escaped, and the page runs no script but its own, as in the report of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from rlgkd import checkpoint
from rlgkd.scripts.answer import DISTANCE, UNSEEN, answer, title
from rlgkd.scripts.comparison_plots import Line, Look, Point, drawing, frontier, lines, over_seeds, path
from rlgkd.scripts.measures import MARKS, METRICS, Metric, Score, metric_of, to_float, verdict
from rlgkd.scripts.report import DIVERGENCES, environment

UNITS: Final = {"sequence_mean": "nats/token", "token_mean": "nats/token", "sequence_sum": "nats/text"}
"""Of a divergence, by how it was averaged."""
SPREAD: Final = ("self_bleu", "distinct1", "distinct2", "distinct3", "entropy", "length", "ended")
"""How the texts are, not how good."""
CURVES: Final = {
    "reward": METRICS["reward"],
    **{name: METRICS[name] for name in UNSEEN},
    "divergence": Metric(key="divergence", label="Divergence to the teacher", unit="nats/token"),
    "length": METRICS["length"],
    "entropy": METRICS["entropy"],
}
"""What is drawn over training."""


def write_report(out: Path) -> Path:
    """Write `report.html` into the folder of a comparison and return its path."""
    results = json.loads((out / "results.json").read_text())
    timing = json.loads((out / "timing.json").read_text())
    page = environment().get_template("comparison.html").render(**view(results, timing))
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
    with drawing():
        plots = {
            "frontier": _frontiers(results, cells, looks),
            "curves": _curves(cells, looks, None, results["settings"]["divergence_reduction"]),
            "timed": _curves(cells, looks, timing),
            "gap": _gaps(cells, looks),
            "paths": _paths(results, cells, looks),
            "passes": _passes(results, cells, looks),
            "positions": _positions(results, cells, looks),
        }
    settings = results["settings"]
    return {
        "title": f"How much teacher: {results['name']}" if list(results["vary"]) == ["alpha"] else results["name"],
        "results": results, "settings": settings, "answers": answer(results), "plots": plots,
        "divergence": DIVERGENCES.get(settings["divergence"], settings["divergence"]),
        "legend": list(looks.values()), "marks": MARKS, "varied": ", ".join(results["vary"]),
        "quality": _table(results, cells, quality), "spread": _table(results, cells, spread),
        "against": [
            {"name": title(name), "rows": _changes(cells, name, [*quality, *spread]), "cells": [
                title(cell["name"]) for cell in cells if cell["name"] != name
            ]}
            for name in dict.fromkeys(results["baselines"])
            if any(name in cell["against"] for cell in cells)
        ],
        "examples": _examples(results, cells),
        "config": yaml.safe_dump(settings, sort_keys=False),
    }  # fmt: skip


def _table(results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """A row for each measure: start, cells, teacher; the cell whose mean is best is marked."""
    before = {name: found for name, found in results["references"].items() if name != "teacher"}
    after = {name: found for name, found in results["references"].items() if name == "teacher"}
    columns = [*before.items(), *((cell["name"], cell) for cell in cells), *after.items()]
    trained = [name not in results["references"] for name, _ in columns]
    rows = []
    for name in names:
        metric = metric_of(name)
        scores = [Score.of(found["scores"].get(name)) for _, found in columns]
        means = [score.mean for score, own in zip(scores, trained, strict=True) if own]
        best = metric.better * max(metric.better * mean for mean in means) if metric.better else None
        rows.append({
            "metric": metric,
            "scores": [
                {"value": metric.value(s.mean), "bounds": metric.bounds(s.low, s.high), "best": own and s.mean == best}
                for s, own in zip(scores, trained, strict=True)
            ],
        })  # fmt: skip
    return {"columns": [title(name) for name, _ in columns], "rows": rows}


def _changes(cells: Sequence[Mapping[str, Any]], baseline: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each measure: every cell's paired change from the baseline, and the probability that it is better."""
    rows = []
    for name in names:
        metric, found = metric_of(name), []
        for cell in cells:
            if cell["name"] == baseline:
                continue
            told = cell["against"].get(baseline, {}).get(name, {})
            change, greater = Score.of(told.get("change")), Score.of(told.get("greater"))
            probability = greater if metric.better >= 0 else _mirrored(greater)
            found.append({
                "change": metric.change(change.mean), "bounds": metric.bounds(change.low, change.high, between=" to "),
                "mark": verdict(metric, change),
                "probability": f"{probability.mean:.2f} ({probability.low:.2f} to {probability.high:.2f})",
            })  # fmt: skip
        rows.append({"metric": metric, "cells": found})
    return rows


def _mirrored(score: Score) -> Score:
    return Score(mean=1 - score.mean, low=1 - score.high, high=1 - score.low)


def _frontiers(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """Reward against the divergence to the teacher, and against each quality that training never saw."""
    names = [name for name in (DISTANCE, *UNSEEN) if all(name in cell["scores"] for cell in cells)]
    short = len(results["vary"]) == 1
    panels = []
    for name in names:
        points = [
            Point(
                label=str(next(iter(cell["values"].values()))) if short else looks[cell["name"]].label,
                x=_triple(cell["scores"][name]), y=_triple(cell["scores"]["reward"]), look=looks[cell["name"]],
            )
            for cell in cells
        ]  # fmt: skip
        points += [
            Point(label=other, x=_triple(found["scores"][name]), y=_triple(found["scores"]["reward"]), look=None)
            for other, found in results["references"].items()
            if name in found["scores"]
        ]
        metric = metric_of(name)
        svg = frontier(points, metric, METRICS["reward"], f"frontier-{name}")
        panels.append({"label": f"Reward against {metric.label}", "unit": metric.note, "svg": svg})
    return panels


def _curves(
    cells: Sequence[Mapping[str, Any]],
    looks: Mapping[str, Look],
    timing: Mapping[str, Any] | None,
    reduction: str = "",
) -> list[dict[str, Any]]:
    """Each measure over tokens, or over seconds where times are given."""
    panels = []
    for name, metric in CURVES.items():
        if name == "divergence":
            metric = replace(metric, unit=UNITS.get(reduction, "nats"))
        drawn = []
        for cell in cells:
            seconds = None if timing is None else timing.get(cell["name"], {})
            runs = [
                (run["training"]["tokens"] if seconds is None else seconds.get(str(run["seed"]), []), values)
                for run in cell["runs"]
                if (values := run["training"].get(name))
            ]
            if line := over_seeds(looks[cell["name"]].label, looks[cell["name"]], runs):
                drawn.append(line)
        if drawn and (timing is None or name in ("reward", *UNSEEN[:2])):
            axis = "tokens" if timing is None else "seconds of training"
            svg = lines(drawn, axis, metric, f"{'curve' if timing is None else 'timed'}-{name}")
            unit = metric.unit or ("%" if metric.share else "per text" if name == "reward" else "")
            panels.append({"label": metric.label, "unit": unit, "svg": svg})
    return panels


def _gaps(cells: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    """What the learned reward says more than each measure of quality does, over tokens."""
    panels = []
    for name in UNSEEN:
        if not all(name in run["training"] for cell in cells for run in cell["runs"]):
            continue
        drawn = [
            over_seeds(looks[cell["name"]].label, looks[cell["name"]], [
                (run["training"]["tokens"], _minus(run["training"]["reward"], run["training"][name]))
                for run in cell["runs"]
            ])
            for cell in cells
        ]  # fmt: skip
        label = f"Reward minus {metric_of(name).label}"
        metric = Metric(key=name, label=label)
        svg = lines([line for line in drawn if line], "tokens", metric, f"gap-{name}")
        panels.append({"label": label, "unit": "both from 0 to 1", "svg": svg})
    return panels


def _paths(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """Reward and unseen quality of each cell along its divergence in training, the mean over its seeds."""
    panels = []
    for cell in cells:
        settings = {**results["settings"], **cell["values"]}
        divergence, unit = settings["divergence"], UNITS.get(settings["divergence_reduction"], "nats")
        axis = f"{DIVERGENCES.get(divergence, divergence)} to the teacher, {unit}"
        found = {}
        for name in ("divergence", "reward", *UNSEEN[:3]):
            line = over_seeds("", None, [(r["training"]["tokens"], r["training"].get(name, [])) for r in cell["runs"]])
            if line is not None:
                found[name] = line.y
        x = found.pop("divergence", None)
        if x is None or len(found) < 2:
            continue
        look = looks[cell["name"]]
        series = {metric_of(name).label: y for name, y in found.items()}
        told = _parting(found)
        svg = path(x, series, look, f"path-{look.number}", axis)
        panels.append({"label": look.label, "unit": told, "svg": svg, "look": look})
    return panels


def _parting(found: Mapping[str, np.ndarray]) -> str:
    """Where a measure of quality was best, and what became of it and of the reward since."""
    told = []
    for name, y in found.items():
        top = int(np.nanargmax(y))
        if name != "reward" and y[top] - y[-1] > 0.01:
            metric, reward = metric_of(name), found["reward"]
            share = 100 * top / max(len(y) - 1, 1)
            told.append(
                f"{metric.label} peaked at {metric.value(y[top])} after {share:.0f}% of the tokens and ended at "
                f"{metric.value(y[-1])}, while reward went from {reward[top]:.3f} to {reward[-1]:.3f}"
            )
    return "; ".join(told)


def _passes(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """pass@k over k for each measure that decides whether a text is right."""
    panels = []
    keys = [name for name in cells[0]["scores"] if "@" in name]
    for name in dict.fromkeys(key.partition("@")[0] for key in keys):
        ks = [1, *(int(key.partition("@")[2]) for key in keys if key.startswith(f"{name}@"))]
        drawn = [
            _with_bounds(looks.get(other), title(other), ks, [
                found["scores"].get(name if k == 1 else f"{name}@{k}") for k in ks
            ])
            for other, found in _with_start(results, cells)
        ]  # fmt: skip
        metric = Metric(key=name, label=f"pass@k by {metric_of(name).label.lower()}", share=True)
        svg = lines(drawn, "k texts", metric, f"pass-{name}", steps=lambda value: f"{value:.3g}")
        panels.append({"label": metric.label, "unit": "% of prompts with at least one right of k", "svg": svg})
    return panels


def _positions(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """The divergence at each token position, behind the student's own words and behind the references'."""
    panels = []
    kinds = {"reverse_kl": "Behind its own words", "reverse_kl_data": "Behind the references' words"}
    for name, label in kinds.items():
        drawn = []
        for other, found in _with_start(results, cells):
            runs = found.get("runs") or [found]
            rows = [run["by_position"][name] for run in runs if name in run["by_position"]]
            line = over_seeds(title(other), looks.get(other), [(range(1, len(r) + 1), r) for r in rows], smooth=False)
            if line:
                drawn.append(line)
        if drawn:
            metric = Metric(key=name, label="Reverse KL to the teacher", unit="nats")
            svg = lines(drawn, "token position", metric, f"position-{name}", steps=lambda value: f"{value:.3g}")
            panels.append({"label": label, "unit": "reverse KL at the token, nats", "svg": svg})
    return panels


def _with_start(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ((name, found) for name, found in results["references"].items() if name != "teacher")
    yield from ((cell["name"], cell) for cell in cells)


def _with_bounds(look: Look | None, label: str, ks: Sequence[int], scores: Sequence[Any]) -> Line:
    found = [Score.of(score) for score in scores]
    x, y, low, high = (
        np.array(values, dtype=np.float64)
        for values in (ks, [s.mean for s in found], [s.low for s in found], [s.high for s in found])
    )
    return Line(look=look, label=label, x=x, y=y, low=low, high=high)


def _minus(ours: Sequence[Any], theirs: Sequence[Any]) -> list[float]:
    return [to_float(a) - to_float(b) for a, b in zip(ours, theirs, strict=True)]


def _triple(score: Mapping[str, Any]) -> tuple[float, float, float]:
    found = Score.of(score)
    return found.mean, found.low, found.high


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
