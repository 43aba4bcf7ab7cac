"""What a compression has found so far: gathered from its folders, and written as docs/compression/results.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd.envs.rewards import rouge
from rlgkd.scripts.comparison.cell_statistics import paired_change, scores
from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.compression.cells import OURS, Task
from rlgkd.scripts.reproduction.curves import SECONDS, at_seconds, draw_curves, held_out_curves
from rlgkd.scripts.reproduction.entries import cell_entries, entry, measures_in, missing_of
from rlgkd.scripts.reproduction.pages import kept_scores, write_results
from rlgkd.scripts.reproduction.runs import MEASURED_IN
from rlgkd.scripts.reproduction.tables import (
    Entry,
    change_table,
    change_text,
    entry_table,
    missing_line,
    table_head,
    texts_side_by_side,
)

WHOLE = {"raw": "the model as it came", "teacher": "teacher", "student": "cut student", "healed": "healed student"}
"""Models that are made on the way: folder of their measures -> name."""
SPEED = "speed.json"
LIKE_TEACHER = "teacher_rougeL"
MEASURES = {
    LIKE_TEACHER: "ROUGE-L to the teacher's texts",
    "ended": "ends",
    "reverse_kl": "reverse KL, own prefixes",
    "reverse_kl_data": "reverse KL, given prefixes",
    "forward_kl_data": "forward KL, given prefixes",
    "length": "tokens of a text",
}
TEXTS = 20
KEPT = "healed student"
"""Whose share of the teacher's quality is given."""


def gathered(task: Task, folder: Path, grids: Mapping[str, Grid]) -> dict[str, Any]:
    """Return what there is of a task: entries (without runs where there are none), what is missing, curves, speed.

    Args:
        task: The task.
        folder: Its folder.
        grids: Folder of a comparison in it -> grid.
    """
    teacher = measures_in(folder / MEASURED_IN / "teacher")
    like = rouge("rougeL")

    def more(found: Mapping[str, Any]) -> dict[str, list[float]]:
        if teacher is None or "first_texts" not in found:  # measured by an older version
            return {}
        return {LIKE_TEACHER: like(completions=found["first_texts"], references=teacher["first_texts"])}

    models = [entry(title, {None: folder / MEASURED_IN / name}, more) for name, title in WHOLE.items()]
    cells: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    for part, grid in grids.items():
        cells += cell_entries(grid, folder / part, more)
        curves |= held_out_curves(grid, folder / part)
    speed = json.loads((folder / SPEED).read_text()) if (folder / SPEED).is_file() else None
    missing = missing_of([*models, *cells])
    return {"models": models, "cells": cells, "missing": missing, "curves": curves, "speed": speed}


def write_page(found: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task], docs: Path) -> Path:
    """Write results.md, results.json and each task's curves; return the page's path.

    Args:
        found: Task -> what `gathered` returns.
        tasks: By name.
        docs: The folder.
    """
    docs.mkdir(parents=True, exist_ok=True)
    lines = {name: _task_lines(tasks[name], results, docs) for name, results in found.items()}
    kept = {
        name: {"scores": kept_scores([*one["models"], *one["cells"]])}
        | {key: one[key] for key in ("missing", "curves", "speed")}
        for name, one in found.items()
    }
    script = "reproduce_compression.py"
    return write_results(docs, script=script, title="Compression: results", tasks=lines, kept=kept)


def _task_lines(task: Task, results: Mapping[str, Any], docs: Path) -> list[str]:
    models, cells = results["models"], results["cells"]
    measures = {**task.measures, **MEASURES}
    lines = []
    lines += missing_line(results["missing"])
    lines += [*entry_table("model", models, measures), "", *_kept_share(task, models), ""]
    lines += ["All ways to heal from the cut student, at equal tokens:", ""]
    lines += [*entry_table("method", cells, measures), ""]
    ours, *others = sorted(cells, key=lambda entry: entry["name"] != OURS)
    pairs = [(ours, other) for other in others if ours["runs"] and other["runs"]]
    if pairs:
        lines += [f"{OURS} less each other, paired by seed and prompt; a star: the 95% interval excludes zero.", ""]
        lines += [*change_table("difference", pairs, measures), ""]
    if results["curves"]:
        picture = docs / f"{task.name}.png"
        own = next(iter(task.measures))
        shown = {own: task.measures[own], "reverse_kl": "reverse KL, nats/token"}
        draw_curves(results["curves"], shown, picture)
        lines += [f"![Held-out measures over tokens and seconds]({picture.name})", ""]
        lines += _equal_time(results["curves"], {**task.measures, "reverse_kl": MEASURES["reverse_kl"]})
    if results["speed"]:
        lines += _speed_lines(results["speed"])
    written = [*(e for e in models if e["name"] != WHOLE["student"]), *(e for e in cells if e["name"] in (OURS, "SFT"))]
    lines += [f"The first {TEXTS} held-out prompts, sampled at temperature 1, seed 0:", ""]
    return [*lines, *texts_side_by_side(written, TEXTS)]


def _kept_share(task: Task, models: Sequence[Entry]) -> list[str]:
    """The healed student next to its teacher."""
    by_name = {entry["name"]: entry for entry in models}
    teacher, healed = by_name["teacher"], by_name[KEPT]
    if not (teacher["runs"] and healed["runs"]):
        return []
    own = next(iter(task.measures))
    theirs, ours = scores(teacher)[own].mean, scores(healed)[own].mean
    if not theirs:
        return [f"The teacher has not learned the task: its {task.measures[own]} is 0."]
    share = f"{ours / theirs:.1%} of the teacher's {task.measures[own]}"
    changes = [
        f"{label} {change_text(paired_change(healed, teacher, name))}"
        for name, label in {**task.measures, "ended": "ends"}.items()
    ]
    return [f"The healed student keeps {share}; less its teacher: {'; '.join(changes)}."]


def _equal_time(curves: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str]) -> list[str]:
    """The held-out measures of each method when the first of them has spent its tokens."""
    timed = {name: curve for name, curve in curves.items() if SECONDS in curve}
    if not timed:
        return []
    seconds = min(curve[SECONDS][-1] for curve in timed.values())
    lines = [
        f"On validation prompts after {seconds:.0f} seconds of training, when the quickest has spent its tokens:",
        "",
    ]
    lines += table_head("method", ["seconds in all", *measures.values()])
    for name, curve in timed.items():
        values = [f"{at_seconds(curve, measure, seconds):.3f}" if measure in curve else "" for measure in measures]
        lines.append(f"| {name} | {curve[SECONDS][-1]:.0f} | {' | '.join(values)} |")
    return [*lines, ""]


def _speed_lines(speed: Mapping[str, Any]) -> list[str]:
    names = list(speed["models"])
    lines = [f"In plain transformers, {speed['new_tokens']} new tokens, {speed['threads']} thread:", ""]
    lines += table_head("texts at a time", [*(f"{name}, tokens/s" for name in names), "times as fast", "all pairs"])
    for row in speed["speed"]:
        rates = [f"{row['tokens_per_second'][name]:.1f}" for name in names]
        ratios = f"{row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f}"
        lines.append(f"| {row['rows']} | {' | '.join(rates)} | {row['times_as_fast']:.2f} | {ratios} |")
    sizes = [
        f"{name} {size['parameters'] / 1e6:.1f} million parameters, {size['bytes'] / 2**20:.0f} MiB"
        for name, size in speed["models"].items()
    ]
    return [*lines, "", f"Sizes: {'; '.join(sizes)}.", ""]
