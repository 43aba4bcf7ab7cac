"""The plots of a comparison, by section, from what `results.json` and `timing.json` hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from rlgkd.scripts.comparison.findings import DISTANCE, UNSEEN, Cell, title
from rlgkd.scripts.comparison.plots import (
    Line,
    Look,
    Point,
    average_over_seeds,
    draw_frontier,
    draw_lines,
    draw_path,
)
from rlgkd.scripts.report.lenient import to_float, to_interval
from rlgkd.scripts.report.metrics import DIVERGENCE_LABELS, METRICS, Metric, metric_of
from rlgkd.scripts.report.svg import Panel, style

CURVES: Final = {
    "reward": METRICS["reward"],
    **{name: METRICS[name] for name in UNSEEN},
    "divergence": Metric(key="divergence", label="Divergence to the teacher", unit="nats/token"),
    "length": METRICS["length"],
    "entropy": METRICS["entropy"],
}
"""Measures that are drawn over tokens."""
TIMED: Final = ("reward", *UNSEEN[:2])
"""Measures that are drawn over seconds too."""
PATH_MEASURES: Final = 3
"""Most unseen measures in one path plot."""
POSITION_LABELS: Final = {"reverse_kl": "On its own prefixes", "reverse_kl_data": "On the references' prefixes"}
LEAST_FALL: Final = 0.01
"""A measure that fell by less since its best value has not parted from the reward."""

Looks = Mapping[str, Look]
"""Name of a cell -> how it is drawn."""


def panels(
    results: Mapping[str, Any], timing: Mapping[str, Any], cells: Sequence[Cell], looks: Looks
) -> dict[str, list[Panel]]:
    """Draw all plots, by section."""
    with style():
        return {
            "frontier": _frontiers(results, cells, looks),
            "curves": _curves(results, cells, looks),
            "timed": _curves(results, cells, looks, timing),
            "gap": _gaps(cells, looks),
            "paths": _paths(results, cells, looks),
            "passes": _passes(results, cells, looks),
            "positions": _positions(results, cells, looks),
        }


def _frontiers(results: Mapping[str, Any], cells: Sequence[Cell], looks: Looks) -> list[Panel]:
    """Draw reward against the divergence to the teacher, and against each quality that training never saw."""
    panels = []
    for name in (DISTANCE, *UNSEEN):
        if not all(name in cell["scores"] for cell in cells):
            continue
        points = [_point(cell["name"], cell, name, looks[cell["name"]]) for cell in cells]
        points += [
            _point(model, found, name, None)
            for model, found in results["references"].items()
            if name in found["scores"]
        ]
        metric = metric_of(name)
        svg = draw_frontier(points, metric, METRICS["reward"], f"frontier-{name}")
        panels.append(Panel(label=f"Reward against {metric.label}", unit=metric.note, svg=svg))
    return panels


def _point(label: str, cell: Cell, measure: str, look: Look | None) -> Point:
    scores = cell["scores"]
    return Point(label=label, x=to_interval(scores[measure]), y=to_interval(scores["reward"]), look=look)


def _curves(
    results: Mapping[str, Any], cells: Sequence[Cell], looks: Looks, timing: Mapping[str, Any] | None = None
) -> list[Panel]:
    """Draw each measure over tokens, or over seconds if times are given."""
    panels = []
    for name, metric in CURVES.items():
        if timing is not None and name not in TIMED:
            continue
        if name == "divergence" and "divergence" in results["vary"]:  # different divergences have no common scale
            continue
        lines = []
        for cell in cells:
            runs = []
            for run in cell["runs"]:
                x = run["training"]["tokens"]
                if timing is not None:
                    x = timing.get(cell["name"], {}).get(str(run["seed"]), [])
                if run["training"].get(name):
                    runs.append((x, run["training"][name]))
            line = _average(cell, looks, runs)
            if line is not None:
                lines.append(line)
        if _has_course(lines):
            axis = "tokens" if timing is None else "seconds of training"
            svg = draw_lines(lines, axis, metric, f"{'curve' if timing is None else 'timed'}-{name}")
            unit = metric.unit or ("%" if metric.share else "per text" if name == "reward" else "")
            panels.append(Panel(label=metric.label, unit=unit, svg=svg))
    return panels


def _gaps(cells: Sequence[Cell], looks: Looks) -> list[Panel]:
    """Draw the learned reward minus each measure of quality, over tokens."""
    panels = []
    for name in UNSEEN:
        if not all(name in run["training"] for cell in cells for run in cell["runs"]):
            continue
        lines = []
        for cell in cells:
            runs = [
                (run["training"]["tokens"], _difference(run["training"]["reward"], run["training"][name]))
                for run in cell["runs"]
            ]
            line = _average(cell, looks, runs)
            if line is not None:
                lines.append(line)
        if not _has_course(lines):
            continue
        label = f"Reward minus {metric_of(name).label}"
        svg = draw_lines(lines, "tokens", Metric(key=name, label=label), f"gap-{name}")
        panels.append(Panel(label=label, unit="both from 0 to 1", svg=svg))
    return panels


def _paths(results: Mapping[str, Any], cells: Sequence[Cell], looks: Looks) -> list[Panel]:
    """Draw reward and unseen quality of each cell along its divergence in training, the mean over its seeds."""
    panels = []
    for cell in cells:
        settings = {**results["settings"], **cell["values"]}
        divergence = settings["divergence"]
        axis = f"{DIVERGENCE_LABELS.get(divergence, divergence)} to the teacher, nats/token"
        unseen = [name for name in UNSEEN if all(name in run["training"] for run in cell["runs"])]
        means = {}
        for name in ("divergence", "reward", *unseen[:PATH_MEASURES]):
            runs = [(run["training"]["tokens"], run["training"].get(name, [])) for run in cell["runs"]]
            line = _average(cell, looks, runs)
            if line is not None:
                means[name] = line.y
        x = means.pop("divergence", None)
        if x is None or len(x) < 2 or len(means) < 2:
            continue
        look = looks[cell["name"]]
        series = {metric_of(name).label: y for name, y in means.items()}
        svg = draw_path(x, series, look, f"path-{look.number}", axis)
        panels.append(Panel(label=look.label, unit=parting(means), svg=svg))
    return panels


def parting(means: Mapping[str, np.ndarray]) -> str:
    """Say where a measure of quality was best, if it fell since while the reward rose; empty if none did.

    `means` holds `reward` and some unseen measures, each as its curve over training.
    """
    reward = means["reward"]
    clauses = []
    for name, y in means.items():
        top = int(np.nanargmax(y))
        if name != "reward" and y[top] - y[-1] > LEAST_FALL and reward[-1] > reward[top]:
            metric = metric_of(name)
            share = 100 * top / max(len(y) - 1, 1)
            clauses.append(
                f"{metric.label} peaked at {metric.value(y[top])} after {share:.0f}% of the tokens and ended at "
                f"{metric.value(y[-1])}, while reward rose from {reward[top]:.3f} to {reward[-1]:.3f}"
            )
    return "; ".join(clauses)


def _passes(results: Mapping[str, Any], cells: Sequence[Cell], looks: Looks) -> list[Panel]:
    """Draw pass@k over k for each measure that decides whether a completion is right."""
    panels = []
    keys = [key for key in cells[0]["scores"] if "@" in key]
    for name in dict.fromkeys(key.partition("@")[0] for key in keys):
        by_k = {1: name} | {int(key.partition("@")[2]): key for key in keys if key.startswith(f"{name}@")}
        lines = [
            _line_with_bounds(looks.get(model), title(model), by_k, found["scores"])
            for model, found in _with_start(results, cells)
        ]
        metric = Metric(key=name, label=f"pass@k by {metric_of(name).label.lower()}", share=True)
        svg = draw_lines(lines, "k texts", metric, f"pass-{name}", tick=_three_digits)
        panels.append(Panel(label=metric.label, unit="% of prompts with at least one right of k", svg=svg))
    return panels


def _positions(results: Mapping[str, Any], cells: Sequence[Cell], looks: Looks) -> list[Panel]:
    """Draw the divergence at each token position, on the student's own prefixes and on the references'."""
    panels = []
    metric = Metric(key=DISTANCE, label="Reverse KL to the teacher", unit="nats")
    for name, label in POSITION_LABELS.items():
        lines = []
        for model, found in _with_start(results, cells):
            runs = found.get("runs") or [found]
            rows = [run["by_position"][name] for run in runs if name in run["by_position"]]
            curves = [(range(1, len(row) + 1), row) for row in rows]
            line = average_over_seeds(title(model), looks.get(model), curves, smooth=False)
            if line is not None:
                lines.append(line)
        if lines:
            svg = draw_lines(lines, "token position", metric, f"position-{name}", tick=_three_digits)
            panels.append(Panel(label=label, unit="reverse KL at the token, nats", svg=svg))
    return panels


def _average(cell: Cell, looks: Looks, runs: Sequence[tuple[Any, Any]]) -> Line | None:
    look = looks[cell["name"]]
    return average_over_seeds(look.label, look, runs)


def _with_start(results: Mapping[str, Any], cells: Sequence[Cell]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and content of the students before training, then of the cells."""
    yield from ((name, found) for name, found in results["references"].items() if name != "teacher")
    yield from ((cell["name"], cell) for cell in cells)


def _line_with_bounds(look: Look | None, label: str, by_k: Mapping[int, str], scores: Mapping[str, Any]) -> Line:
    """Return the line of a measure over k, with its intervals as the band."""
    intervals = [to_interval(scores.get(key)) for key in by_k.values()]
    return Line(
        look=look,
        label=label,
        x=np.array(list(by_k), dtype=np.float64),
        y=np.array([found.mean for found in intervals]),
        low=np.array([found.low for found in intervals]),
        high=np.array([found.high for found in intervals]),
    )


def _has_course(lines: Sequence[Line]) -> bool:
    """Return whether a line has two points: one update makes one, and that shows no course."""
    return any(len(line.x) > 1 for line in lines)


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> list[float]:
    return [to_float(a) - to_float(b) for a, b in zip(ours, theirs, strict=True)]


def _three_digits(value: float) -> str:
    return f"{value:.3g}"
