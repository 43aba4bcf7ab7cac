"""The figures of docs/paper: methods, mixtures, diversity, and RL with its two anchors; one panel for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlgkd.scripts._figures import AMBER, BLUE, GREEN, GREY, ORANGE, SKY, plain, save_png
from rlgkd.scripts.paper.cells import (
    ALPHAS,
    BASELINES,
    COMPARED_DIVERGENCES,
    FRACTIONS,
    TASKS,
    PaperTask,
    measure_label,
    mixed,
    on_policy,
    rl_gkd,
)
from rlgkd.scripts.paper.claims import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIVERGENCE_COLOURS = (BLUE, SKY, GREEN, AMBER, ORANGE)
DIVERGENCE_MARKERS = "osD^v"


def draw(found: Mapping[str, Results], docs: Path) -> None:
    """Write methods.png, mixtures.png, diversity.png and anchors.png."""
    from matplotlib.figure import Figure

    panels: dict[str, tuple[Callable[[Axes, Results, PaperTask], None], float]] = {
        "methods": (_draw_methods, 3.6),
        "mixtures": (_draw_mixtures, 2.8),
        "diversity": (_draw_diversity, 3.2),
        "anchors": (_draw_anchors, 3.2),
    }
    for name, (draw_panel, height) in panels.items():
        figure = Figure(figsize=(4.2 * len(found), height), layout="constrained")
        for axes, (task_name, results) in zip(
            np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True
        ):
            task = TASKS[task_name]
            draw_panel(axes, results, task)
            axes.set_title(f"{task.name} (for {task.paper})", fontsize=10)
            plain(axes)
        save_png(figure, docs / f"{name}.png")


def _scores(results: Results, cell: str) -> Mapping[str, Any]:
    scores: Mapping[str, Any] = next(entry["scores"] for entry in results["cells"] if entry["name"] == cell)
    return scores


def _draw_line(
    axes: Axes, x: Sequence[float], scores: Sequence[Mapping[str, Any]], label: str, colour: str, marker: str
) -> None:
    mean, low, high = (np.array([score[key] for score in scores]) for key in ("mean", "low", "high"))
    axes.errorbar(x, mean, [mean - low, high - mean], label=label, color=colour, marker=marker, capsize=2, lw=1.2, ms=4)


def _draw_methods(axes: Axes, results: Results, task: PaperTask) -> None:
    names = [*BASELINES, *map(on_policy, COMPARED_DIVERGENCES)]
    for line, name in enumerate(names):
        score = _scores(results, name)[task.quality]
        errors = [[score["mean"] - score["low"]], [score["high"] - score["mean"]]]
        colour = BLUE if name.startswith("on-policy") else ORANGE
        axes.errorbar(score["mean"], line, xerr=errors, color=colour, marker="o", ms=4, capsize=2)
    for name, dash in (("start", ":"), ("teacher", "--")):
        mean = results["references"][name]["scores"][task.quality]["mean"]
        axes.axvline(mean, color=GREY, ls=dash, lw=1)
        axes.annotate(name, (mean, len(names) - 0.4), ha="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.2, -0.8)
    axes.set_xlabel(measure_label(task.quality, task.reward), fontsize=8)


def _draw_mixtures(axes: Axes, results: Results, task: PaperTask) -> None:
    fractions = [*FRACTIONS, 1.0]
    names = [*map(mixed, FRACTIONS), on_policy("JSD(0.5)")]
    scores = [_scores(results, name)[task.quality] for name in names]
    _draw_line(axes, fractions, scores, "JSD(0.5)", BLUE, "o")
    axes.set_xlabel("share of batches that the student wrote", fontsize=8)
    axes.set_ylabel(measure_label(task.quality, task.reward), fontsize=8)


def _draw_diversity(axes: Axes, results: Results, task: PaperTask) -> None:
    """Draw quality against likeness of each divergence's student, from the lowest temperature to 1."""
    for name, colour, marker in zip(COMPARED_DIVERGENCES, DIVERGENCE_COLOURS, DIVERGENCE_MARKERS, strict=True):
        cell = on_policy(name)
        points = [
            (_run_mean(runs[cell], "self_bleu"), _run_mean(runs[cell], task.quality), temperature)
            for temperature, runs in results["colder"].items()
        ]
        own = _scores(results, cell)
        points.append((own["self_bleu"]["mean"], own[task.quality]["mean"], "1"))
        xs = [x for x, _, _ in points]
        ys = [y for _, y, _ in points]
        axes.plot(xs, ys, color=colour, marker=marker, ms=4, lw=1, label=name)
        if name == "reverse KL":
            for x, y, temperature in points:
                axes.annotate(f"T={temperature}", (x, y), fontsize=7, xytext=(3, -9), textcoords="offset points")
    axes.set_xlabel("self-BLEU (more alike to the right)", fontsize=8)
    axes.set_ylabel(measure_label(task.quality, task.reward), fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _run_mean(runs: Sequence[Mapping[str, Any]], measure: str) -> float:
    """Return the mean over runs of a measure's mean over prompts."""
    return float(np.mean([np.nanmean(np.array(run[measure], dtype=float)) for run in runs]))


def _draw_anchors(axes: Axes, results: Results, task: PaperTask) -> None:
    for anchor, colour, marker in (("teacher", BLUE, "o"), ("start", ORANGE, "s")):
        scores = [_scores(results, rl_gkd(alpha, anchor)) for alpha in ALPHAS]
        label = f"{measure_label(task.quality, task.reward)}, anchor: {anchor}"
        _draw_line(axes, ALPHAS, [score[task.quality] for score in scores], label, colour, marker)
        if task.quality != "reward":
            rewards = [score["reward"]["mean"] for score in scores]
            label = f"{task.reward}, anchor: {anchor}"
            axes.plot(ALPHAS, rewards, color=colour, ls=":", marker=marker, ms=3, lw=1, label=label)
    axes.set_xlabel("alpha, the divergence's weight (JSD(0.9))", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
