"""Which plots a comparison shows: panels of label, unit and SVG, from what `results.json` and `timing.json` hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from rlgkd.scripts.comparison.findings import DISTANCE, UNSEEN, title
from rlgkd.scripts.comparison.plots import Line, Look, Point, frontier, lines, over_seeds, path
from rlgkd.scripts.report.lenient import to_float, to_interval
from rlgkd.scripts.report.metrics import DIVERGENCE_LABELS, METRICS, Metric, metric_of
from rlgkd.scripts.report.svg import style

UNITS: Final = {"sequence_mean": "nats/token", "token_mean": "nats/token", "sequence_sum": "nats/text"}
"""Of a divergence, by how it was averaged."""
CURVES: Final = {
    "reward": METRICS["reward"],
    **{name: METRICS[name] for name in UNSEEN},
    "divergence": Metric(key="divergence", label="Divergence to the teacher", unit="nats/token"),
    "length": METRICS["length"],
    "entropy": METRICS["entropy"],
}
"""What is drawn over training."""
LABEL: Final = 20


def panels(
    results: Mapping[str, Any], timing: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]
) -> dict[str, list[dict[str, Any]]]:
    """All plots, by section."""
    with style():
        return {
            "frontier": _frontiers(results, cells, looks),
            "curves": _curves(results, cells, looks, None),
            "timed": _curves(results, cells, looks, timing),
            "gap": _gaps(cells, looks),
            "paths": _paths(results, cells, looks),
            "passes": _passes(results, cells, looks),
            "positions": _positions(results, cells, looks),
        }


def _frontiers(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """Reward against the divergence to the teacher, and against each quality that training never saw."""
    names = [name for name in (DISTANCE, *UNSEEN) if all(name in cell["scores"] for cell in cells)]
    panels = []
    for name in names:
        points = [
            Point(
                label=_short(cell["values"]),
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


def _short(values: Mapping[str, Any]) -> str:
    """A cell's values as a label of at most LABEL letters."""
    text = ", ".join(str(value).removeprefix("embedded:") for value in values.values())
    return text if len(text) <= LABEL else f"{text[: LABEL - 3]}..."


def _curves(
    results: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    looks: Mapping[str, Look],
    timing: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Each measure over tokens, or over seconds where times are given."""
    panels = []
    for name, metric in CURVES.items():
        if name == "divergence":
            if "divergence" in results["vary"]:  # they have no common scale
                continue
            metric = replace(metric, unit=UNITS.get(results["settings"]["divergence_reduction"], "nats"))
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
        if _has_course(drawn) and (timing is None or name in ("reward", *UNSEEN[:2])):
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
        found = [
            over_seeds(looks[cell["name"]].label, looks[cell["name"]], [
                (run["training"]["tokens"], _minus(run["training"]["reward"], run["training"][name]))
                for run in cell["runs"]
            ])
            for cell in cells
        ]  # fmt: skip
        drawn = [line for line in found if line]
        if not _has_course(drawn):
            continue
        label = f"Reward minus {metric_of(name).label}"
        metric = Metric(key=name, label=label)
        svg = lines(drawn, "tokens", metric, f"gap-{name}")
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
        axis = f"{DIVERGENCE_LABELS.get(divergence, divergence)} to the teacher, {unit}"
        found = {}
        unseen = [name for name in UNSEEN if all(name in run["training"] for run in cell["runs"])][:3]
        for name in ("divergence", "reward", *unseen):
            line = over_seeds("", None, [(r["training"]["tokens"], r["training"].get(name, [])) for r in cell["runs"]])
            if line is not None:
                found[name] = line.y
        x = found.pop("divergence", None)
        if x is None or len(x) < 2 or len(found) < 2:
            continue
        look = looks[cell["name"]]
        series = {metric_of(name).label: y for name, y in found.items()}
        told = _parting(found)
        svg = path(x, series, look, f"path-{look.number}", axis)
        panels.append({"label": look.label, "unit": told, "svg": svg, "look": look})
    return panels


def _parting(found: Mapping[str, np.ndarray]) -> str:
    """Where a measure of quality was best, if it fell since while the reward rose."""
    told = []
    for name, y in found.items():
        top = int(np.nanargmax(y))
        reward = found["reward"]
        if name != "reward" and y[top] - y[-1] > 0.01 and reward[-1] > reward[top]:
            metric = metric_of(name)
            share = 100 * top / max(len(y) - 1, 1)
            told.append(
                f"{metric.label} peaked at {metric.value(y[top])} after {share:.0f}% of the tokens and ended at "
                f"{metric.value(y[-1])}, while reward rose from {reward[top]:.3f} to {reward[-1]:.3f}"
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
    found = [to_interval(score) for score in scores]
    x, y, low, high = (
        np.array(values, dtype=np.float64)
        for values in (ks, [s.mean for s in found], [s.low for s in found], [s.high for s in found])
    )
    return Line(look=look, label=label, x=x, y=y, low=low, high=high)


def _has_course(drawn: Sequence[Line]) -> bool:
    """Whether a line has two points: an update makes one, and one alone shows no course."""
    return any(len(line.x) > 1 for line in drawn)


def _minus(ours: Sequence[Any], theirs: Sequence[Any]) -> list[float]:
    return [to_float(a) - to_float(b) for a, b in zip(ours, theirs, strict=True)]


def _triple(score: Mapping[str, Any]) -> tuple[float, float, float]:
    found = to_interval(score)
    return found.mean, found.low, found.high
