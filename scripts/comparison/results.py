"""The files that a comparison leaves: results.json, results.csv and timing.json, made from the folders of its runs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlgkd.errors import CheckpointError
from rlgkd.scripts.comparison.cell_statistics import against, scores
from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.comparison.run_cell import MEASURED, block_means, rounded
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.runs.folder import TIMES
from rlgkd.scripts.runs.tables import read_rows
from rlgkd.secret_masks import masked
from rlgkd.statistics import Interval
from rlgkd.teachers.names import is_outside

RESULTS, TABLE, TIMING = "results.json", "results.csv", "timing.json"
TEACHER, START = "teacher", "start"
LEAST_REACHED = 0.05
"""Share of the prompts whose completions must be as long as a position for it to be shown."""


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """A model that is measured as it is: the teacher, or a student that cells start from."""

    name: str
    folder: str
    """Inside the comparison's."""
    settings: RunConfig
    is_teacher: bool


def untrained_models(grid: Grid) -> list[Untrained]:
    """Return the teacher if there is one that writes texts, and each different student that cells start from."""
    found = []
    one = grid.base.algorithm.teacher
    mixture = one.teacher_mix is not None or one.reference_model is not None
    writes = not is_outside(grid.base.teacher) and not mixture and one.teacher_tokens == "same"
    if grid.base.teacher and writes:
        found.append(Untrained(name=TEACHER, folder=f"references/{TEACHER}", settings=grid.base, is_teacher=True))
    starts: dict[str, Cell] = {}
    for cell in grid.cells:
        settings = cell.settings
        algorithm = settings.algorithm
        start = json.dumps([settings.student, algorithm.model.student_layers, algorithm.sampling.temperature])
        starts.setdefault(hashlib.sha256(start.encode()).hexdigest()[:8], cell)
    for key, cell in starts.items():
        name = START if len(starts) == 1 else f"{START} of {cell.name}"
        folder = f"references/{START}-{key}"
        found.append(Untrained(name=name, folder=folder, settings=cell.settings, is_teacher=False))
    return found


def collect(grid: Grid, out: Path) -> dict[str, Any]:
    """Return the content of results.json.

    Raises: CheckpointError if the runs were measured on different prompts.
    """
    cells: list[dict[str, Any]] = []
    missing: list[str] = []
    for cell in grid.cells:
        runs = []
        for seed in grid.seeds:
            measured = _measured(out / cell.run_folder(seed))
            if measured:
                runs.append({"seed": seed, **measured})
            else:
                missing.append(f"{cell.name} seed {seed}")
        cells.append({"name": cell.name, "values": dict(cell.values), "runs": runs})
    untrained = {}
    for model in untrained_models(grid):
        measured = _measured(out / model.folder)
        if measured:
            untrained[model.name] = measured
    prompts = _common_prompts([*untrained.values(), *(run for cell in cells for run in cell["runs"])], out)
    untrained_cells: list[dict[str, Any]] = [
        {"name": name, "runs": [{"seed": None, **found}]} for name, found in untrained.items()
    ]
    baselines = {cell.name for cell in grid.baselines}
    others = [*(cell for cell in cells if cell["name"] in baselines), *untrained_cells]
    for entry in cells:
        entry["scores"] = plain_intervals(scores(entry))
        entry["against"] = {
            other["name"]: {name: plain_intervals(found) for name, found in against(entry, other).items()}
            for other in others
            if other["name"] != entry["name"]
        }
    return {
        "name": grid.base.name,
        "env": grid.base.env,
        "teacher": grid.base.shown_teacher,
        "evaluation": {
            "split": grid.base.eval_split,
            "prompts": grid.base.eval_prompts,
            "samples": grid.samples,
            "seed": grid.base.eval_seed,
        },
        "vary": {key: list(values) for key, values in grid.vary.items()},
        "seeds": list(grid.seeds),
        "baselines": [cell.name for cell in grid.baselines],
        "settings": masked(grid.base.flat()),
        "prompts": prompts,
        "missing": missing,
        "references": {
            entry["name"]: {**untrained[entry["name"]], "scores": plain_intervals(scores(entry))}
            for entry in untrained_cells
        },
        "cells": cells,
    }


def csv_table(results: Mapping[str, Any]) -> str:
    """Return the content of results.csv: a row for each run with its values, seed, tokens, and mean of each measure."""
    names = list(dict.fromkeys(name for cell in results["cells"] for run in cell["runs"] for name in run["measures"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*results["vary"], "seed", "tokens", "updates", *names])
    for cell in results["cells"]:
        for run in cell["runs"]:
            means = [_mean(run["measures"].get(name, [])) for name in names]
            writer.writerow([*cell["values"].values(), run["seed"], run["tokens"], run["updates"], *means])
    return out.getvalue()


def timing(grid: Grid, out: Path) -> dict[str, dict[str, list[float | None]]]:
    """Return the content of timing.json: cell -> seed -> seconds of training at the points of the run's curves."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for cell in grid.cells:
        found[cell.name] = {}
        for seed in grid.seeds:
            seconds = _training_seconds(out / cell.run_folder(seed) / TIMES)
            if seconds:
                found[cell.name][str(seed)] = rounded(block_means(seconds))
    return found


def tokens_done(run: Path) -> int:
    """Return how many tokens a run has been trained for so far."""
    rows = _csv_rows(run / TIMES)
    done = to_float(rows[-1].get("time/total_timesteps")) if rows else 0.0
    return int(done) if math.isfinite(done) else 0


def _measured(folder: Path) -> dict[str, Any]:
    """Return the run's numbers; empty if it has not been finished."""
    if not (folder / MEASURED).is_file():
        return {}
    found: dict[str, Any] = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    del found["by"]
    found.pop("first_texts", None)  # for those who compare whole texts; the report shows some
    found["by_position"] = {name: _position_means(rows) for name, rows in found["by_position"].items()}
    return found


def _common_prompts(runs: Sequence[dict[str, Any]], out: Path) -> list[str]:
    """Take the prompts out of the runs and return them.

    Raises: CheckpointError if they differ.
    """
    prompts: list[str] = []
    for run in runs:
        own = run.pop("prompts")
        if prompts and own != prompts:
            raise CheckpointError("out", str(out), "its runs were measured on different prompts; give another --out")
        prompts = own
    return prompts


def _position_means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean over prompts at each position; null if less than LEAST_REACHED of them have a value."""
    values = np.array(rows, dtype=np.float64)
    known = np.isfinite(values).sum(axis=0)
    means = np.nansum(values, axis=0) / np.maximum(known, 1)
    return rounded(np.where(known >= LEAST_REACHED * len(values), means, np.nan))


def plain_intervals(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Return intervals as results.json has them."""
    return {
        name: dict(zip(("mean", "low", "high"), rounded([found.mean, found.low, found.high]), strict=True))
        for name, found in intervals.items()
    }


def _mean(values: Sequence[float | None]) -> float | str:
    known = [value for value in values if value is not None]
    return float(f"{np.mean(known):.6g}") if known else ""


def _csv_rows(file: Path) -> list[dict[str, str]]:
    try:
        names, rows = read_rows(file)
    except (OSError, csv.Error):
        return []
    return [dict(zip(names, row, strict=True)) for row in rows]


def _training_seconds(file: Path) -> list[float]:
    spent = [to_float(row.get("time/sampling")) + to_float(row.get("time/update")) for row in _csv_rows(file)]
    return [float(value) for value in np.cumsum(spent)]
