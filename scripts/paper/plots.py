"""The figures of docs/paper: methods, mixtures, diversity, and RL between its two anchors; one panel for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlgkd.scripts.paper.cells import ALPHAS, BASELINES, DIVERGENCES, FRACTIONS, TASKS, mixed, mixture, on_policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, Any]
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"
NAMES = {"reward": "", "rouge2": "ROUGE-2"}


def draw(found: Mapping[str, Results], docs: Path) -> None:
    """Write methods.png, mixtures.png, diversity.png and anchors.png."""
    from matplotlib.figure import Figure

    panels = {"methods": (_methods, 3.6), "mixtures": (_mixtures, 2.8), "diversity": (_diversity, 3.2),
              "anchors": (_anchors, 3.2)}  # fmt: skip
    for name, (panel, height) in panels.items():
        figure = Figure(figsize=(4.2 * len(found), height), layout="constrained")
        for axes, (task, results) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
            panel(axes, results, TASKS[task].quality, TASKS[task].reward)
            axes.set_title(f"{task} (for {TASKS[task].paper})", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
        figure.savefig(docs / f"{name}.png", dpi=110, metadata={"Software": None})


def _scores(results: Results, cell: str) -> Mapping[str, Any]:
    scores: Mapping[str, Any] = next(c["scores"] for c in results["cells"] if c["name"] == cell)
    return scores


def _line(
    axes: Axes, x: Sequence[float], scores: Sequence[Mapping[str, Any]], label: str, colour: str, marker: str
) -> None:
    mean, low, high = (np.array([score[key] for score in scores]) for key in ("mean", "low", "high"))
    axes.errorbar(x, mean, [mean - low, high - mean], label=label, color=colour, marker=marker, capsize=2, lw=1.2, ms=4)


def _methods(axes: Axes, results: Results, quality: str, reward: str) -> None:
    names = [*BASELINES, *map(on_policy, DIVERGENCES)]
    for place, name in enumerate(names):
        score = _scores(results, name)[quality]
        colour = BLUE if name.startswith("on-policy") else ORANGE
        axes.errorbar(
            score["mean"], place, xerr=[[score["mean"] - score["low"]], [score["high"] - score["mean"]]],
            color=colour, marker="o", ms=4, capsize=2,
        )  # fmt: skip
    for name, dash in (("start", ":"), ("teacher", "--")):
        at = results["references"][name]["scores"][quality]["mean"]
        axes.axvline(at, color=GREY, ls=dash, lw=1)
        axes.annotate(name, (at, len(names) - 0.4), ha="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.2, -0.8)
    axes.set_xlabel(_named(quality, reward), fontsize=8)


def _mixtures(axes: Axes, results: Results, quality: str, reward: str) -> None:
    shares = [*FRACTIONS, 1.0]
    names = [*map(mixed, FRACTIONS), on_policy("JSD(0.5)")]
    _line(axes, shares, [_scores(results, name)[quality] for name in names], "JSD(0.5)", BLUE, "o")
    axes.set_xlabel("share of batches that the student wrote", fontsize=8)
    axes.set_ylabel(_named(quality, reward), fontsize=8)


def _diversity(axes: Axes, results: Results, quality: str, reward: str) -> None:
    colours = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
    for (name, colour), marker in zip(zip(DIVERGENCES, colours, strict=True), "osD^v", strict=True):
        cell = on_policy(name)
        points = [
            (np.mean([np.nanmean(np.array(run["self_bleu"], dtype=float)) for run in by[cell]]),
             np.mean([np.nanmean(np.array(run[quality], dtype=float)) for run in by[cell]]), temperature)
            for temperature, by in results["colder"].items()
        ]  # fmt: skip
        own = _scores(results, cell)
        points = [*points, (own["self_bleu"]["mean"], own[quality]["mean"], "1")]
        axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, marker=marker, ms=4, lw=1, label=name)
        for x, y, temperature in points if name == "reverse KL" else ():
            axes.annotate(f"T={temperature}", (x, y), fontsize=7, xytext=(3, -9), textcoords="offset points")
    axes.set_xlabel("self-BLEU (more alike to the right)", fontsize=8)
    axes.set_ylabel(_named(quality, reward), fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _anchors(axes: Axes, results: Results, quality: str, reward: str) -> None:
    for anchor, colour, marker in (("teacher", BLUE, "o"), ("start", ORANGE, "s")):
        scores = [_scores(results, mixture(alpha, anchor))[quality] for alpha in ALPHAS]
        _line(axes, ALPHAS, scores, f"{_named(quality, reward)}, anchor: {anchor}", colour, marker)
        if quality != "reward":
            axes.plot(
                ALPHAS, [_scores(results, mixture(alpha, anchor))["reward"]["mean"] for alpha in ALPHAS],
                color=colour, ls=":", marker=marker, ms=3, lw=1, label=f"{reward}, anchor: {anchor}",
            )  # fmt: skip
    axes.set_xlabel("alpha, the divergence's weight (JSD(0.9))", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _named(measure: str, reward: str) -> str:
    return NAMES.get(measure, measure) or reward
