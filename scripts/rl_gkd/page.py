"""What the cells have found so far: gathered, put into one sentence, and written as docs/rl-gkd/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd.scripts._figures import COLOURS, plain, save_png
from rlgkd.scripts.comparison.cell_statistics import paired_change, scores
from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.reproduction.curves import draw_curves, held_out_curves
from rlgkd.scripts.reproduction.entries import cell_entries, entry, missing_of
from rlgkd.scripts.reproduction.pages import kept_scores, write_results
from rlgkd.scripts.reproduction.runs import MEASURED_IN
from rlgkd.scripts.reproduction.tables import (
    Entry,
    change_table,
    change_text,
    entry_table,
    missing_line,
    texts_side_by_side,
)
from rlgkd.scripts.rl_gkd.cells import DISTILLATION, MIXTURES, RL, STAGES, Task

MODELS = {"raw": "the model as it came", "start": "start", "teacher": "teacher"}
"""Models that are not the comparison's: folder of their measures -> name."""
CELLS = "cells"
TEXTS = 20


def gathered(folder: Path, grid: Grid) -> dict[str, Any]:
    """Return what there is of a task: entries of models and cells, what is missing, curves."""
    models = [entry(title, {None: folder / MEASURED_IN / name}) for name, title in MODELS.items()]
    cells = cell_entries(grid, folder / CELLS)
    curves = held_out_curves(grid, folder / CELLS)
    return {"models": models, "cells": cells, "missing": missing_of([*models, *cells]), "curves": curves}


def best_mixture(results: Mapping[str, Any], quality: str) -> str:
    """Return the alpha in between whose quality on validation prompts is best at the end; empty if none has ended."""
    ends = {name: results["curves"][name][quality][-1] for name in MIXTURES if name in results["curves"]}
    return max(ends, key=lambda name: ends[name]) if ends else ""


def claim(results: Mapping[str, Any], quality: str, label: str) -> str:
    """Return in one sentence what the mixture is worth, from its paired intervals against both ends and the start.

    The mixture is the one that is best on validation prompts; the intervals are of the test prompts.
    """
    by_name = {one["name"]: one for one in [*results["models"], *results["cells"]] if one["runs"]}
    best = by_name.get(best_mixture(results, quality))
    if best is None or RL not in by_name or DISTILLATION not in by_name:
        return "The claim waits for reward alone, distillation alone and a mixture."
    to = {name: paired_change(best, by_name[name], quality) for name in (RL, DISTILLATION)}
    sizes = f"{change_text(to[RL])} over reward alone and {change_text(to[DISTILLATION])} over distillation alone"
    signs = {change.sign for change in to.values()}
    if signs == {1}:
        said = "beats both ends"
    elif -1 in signs:
        said = "is below one of the ends"
    elif to[RL].sign == 1:
        said = "beats reward alone and is level with distillation alone"
    elif to[DISTILLATION].sign == 1:
        said = "beats distillation alone and is level with reward alone"
    else:
        said = "is level with both ends"
    exploited = ""
    if "start" in by_name:
        rises = paired_change(by_name[RL], by_name["start"], "reward")
        unseen = paired_change(by_name[RL], by_name["start"], quality)
        if rises.sign > 0:
            verb = {1: "rises too", 0: "does not clearly move", -1: "falls"}[unseen.sign]
            exploited = (
                f" Of reward alone the reward rises ({change_text(rises)}) and {label} {verb} ({change_text(unseen)})."
            )
    return f"The mixture with {best['name']} {said} in {label}: {sizes}.{exploited}"


def write_page(found: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task], docs: Path) -> Path:
    """Write results.md, results.json and each task's figures; return the page's path."""
    docs.mkdir(parents=True, exist_ok=True)
    lines = {name: _task_lines(tasks[name], results, docs) for name, results in found.items()}
    kept = {
        name: {
            "claim": claim(results, tasks[name].quality, tasks[name].measures[tasks[name].quality]),
            "scores": kept_scores([*results["models"], *results["cells"]]),
            "missing": results["missing"],
            "curves": results["curves"],
        }
        for name, results in found.items()
    }
    title = "RL + GKD on a pretrained model"
    return write_results(docs, script="reproduce_rl_gkd.py", title=title, tasks=lines, kept=kept)


def _task_lines(task: Task, results: Mapping[str, Any], docs: Path) -> list[str]:
    models, cells = results["models"], results["cells"]
    by_name = {one["name"]: one for one in cells}
    label = task.measures[task.quality]
    lines = [*missing_line(results["missing"]), claim(results, task.quality, label), ""]
    lines += [*entry_table("model", models, task.measures), ""]
    lines += [f"{task.cells['tokens']:,} tokens a cell unless the command said otherwise:", ""]
    lines += [*entry_table("cell", cells, task.measures), ""]
    every = [(by_name[ours], by_name[theirs]) for theirs in (RL, DISTILLATION) for ours in (*MIXTURES, STAGES)]
    pairs = [pair for pair in every if all(one["runs"] for one in pair)]
    if pairs:
        lines += ["Paired by seed and prompt; a star: the 95% interval excludes zero.", ""]
        lines += [*change_table("difference", pairs, task.measures), ""]
    frontier = docs / f"{task.name}-frontier.png"
    draw_frontier([*models, *cells], "reward", task.quality, task.measures, frontier)
    lines += [f"![Reward and {label} of each cell]({frontier.name})", ""]
    if results["curves"]:
        picture = docs / f"{task.name}.png"
        draw_curves(results["curves"], {name: task.measures[name] for name in ("reward", task.quality)}, picture)
        lines += [f"![Held-out measures over tokens and seconds]({picture.name})", ""]
    shown = [models[1], models[2]]
    shown += [by_name[name] for name in (RL, best_mixture(results, task.quality), DISTILLATION) if name in by_name]
    lines += [f"The first {TEXTS} held-out prompts, sampled at temperature 1, the first seed:", ""]
    return [*lines, *texts_side_by_side(shown, TEXTS)]


def draw_frontier(entries: Sequence[Entry], x: str, y: str, labels: Mapping[str, str], picture: Path) -> None:
    """Draw each entry that has runs as a point with its intervals; models that were not compared are hollow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    models = set(MODELS.values())
    for number, one in enumerate(found for found in entries if found["runs"]):
        own = scores(one)
        colour = COLOURS[number % len(COLOURS)]
        look: dict[str, Any] = {"color": colour, "mfc": "white" if one["name"] in models else colour}
        bars = [[[score.mean - score.low], [score.high - score.mean]] for score in (own[x], own[y])]
        look |= {"xerr": bars[0], "yerr": bars[1], "marker": "o", "ls": "", "ms": 6, "capsize": 2, "lw": 1}
        axes.errorbar(own[x].mean, own[y].mean, label=one["name"], **look)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))  # of shares, whose intervals over few seeds may pass 0 and 1
    plain(axes, labels[x], f"{labels[y]}, which no training sees")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)
    save_png(figure, picture)
