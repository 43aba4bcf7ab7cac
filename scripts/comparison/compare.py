"""Compares runs: any recipe, with the values of some settings, times seeds: `rlgkd compare`.

    rlgkd compare [RECIPE|FILE.yaml] --alphas 0,0.25,0.5,1 --seeds 3 [--vary KEY=a,b,c] [--out DIR] [key=value ...]

Each cell and seed is a run's folder under `cells/`, trained in a process of its own; what is finished is never run
again, and a comparison that was stopped goes on where it was. `results.json` holds every number and is the same to the
bit for the same comparison; times are in `timing.json`. `results.csv` has a row for each run, `report.html` the answer.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError
from rlgkd.scripts.comparison import run_cell as runs
from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.report.metrics import metric_of
from rlgkd.scripts.runs.recorder import TIMES
from rlgkd.scripts.runs.train import locked
from rlgkd.scripts.runs.workers import Job, run_jobs
from rlgkd.statistics import Interval, improvement, mean_interval

RESULTS, TABLE, TIMING = "results.json", "results.csv", "timing.json"
TEACHER, START = "teacher", "start"
REACHED = 0.05
"""Share of the prompts whose texts must be as long as a position for it to be shown."""


def compare(grid: Grid, out: Path, *, jobs: int = 0, quiet: bool = False) -> tuple[Path, dict[str, str]]:
    """Run what has not been run, and write results and report; returns the report's path and the runs that failed.

    Raises: CheckpointError if the folder is in use, or holds other runs, or if nothing could be run.
    """
    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        open_, done = _work(grid, out)
        console.print(
            f"{grid.base.name}: {len(grid.cells)} cells x {len(grid.seeds)} seeds into {out}"
            + (f"; {done} of {done + len(open_)} parts are there already" if done else "")
        )
        failed = run_jobs(open_, most=jobs or os.cpu_count() or 1, console=console, quiet=quiet)
        results = collect(grid, out)
        if not any(cell["runs"] for cell in results["cells"]):
            name, why = next(iter(failed.items()))
            raise CheckpointError("out", str(out), f"no run could be finished; {name}: {why}")
        checkpoint.atomic_write(out / RESULTS, json.dumps(results, indent=1) + "\n")
        checkpoint.atomic_write(out / TABLE, table(results))
        checkpoint.atomic_write(out / TIMING, json.dumps(timing(grid, out), indent=1) + "\n")
        from rlgkd.scripts.comparison.html import write_report

        return write_report(out), failed


def collect(grid: Grid, out: Path) -> dict[str, Any]:
    """What results.json holds, from the folders of the runs.

    Raises: CheckpointError if they were measured on different prompts.
    """
    cells: list[dict[str, Any]] = []
    for cell in grid.cells:
        measured = {seed: _measured(out / _place(cell, seed)) for seed in grid.seeds}
        found = [{"seed": seed, **run} for seed, run in measured.items() if run]
        cells.append({"name": cell.name, "values": dict(cell.values), "runs": found})
    references = {name: run for name, folder, *_ in _references(grid) if (run := _measured(out / folder))}
    prompts: list[str] = []
    for run in [*references.values(), *(run for cell in cells for run in cell["runs"])]:
        asked = run.pop("prompts")
        if prompts and asked != prompts:
            raise CheckpointError("out", str(out), "its runs were measured on different prompts; give another --out")
        prompts = asked
    ends = {cell.name for cell in grid.baselines}
    others = [*(cell for cell in cells if cell["name"] in ends), *_as_cells(references)]
    for told in cells:
        told["scores"] = scores(told)
        told["against"] = {other["name"]: against(told, other) for other in others if other["name"] != told["name"]}
    return {
        "name": grid.base.name, "env": grid.base.env, "teacher": grid.base.teacher,
        "evaluation": {
            "split": grid.base.eval_split, "prompts": grid.base.eval_prompts, "samples": grid.samples,
            "seed": grid.base.eval_seed,
        },
        "vary": {key: list(values) for key, values in grid.vary.items()}, "seeds": list(grid.seeds),
        "baselines": [cell.name for cell in grid.baselines], "settings": grid.base.model_dump(), "prompts": prompts,
        "missing": [
            f"{cell.name} seed {seed}"
            for cell, found in zip(grid.cells, cells, strict=True)
            for seed in grid.seeds
            if seed not in {run["seed"] for run in found["runs"]}
        ],
        "references": {
            other["name"]: {**references[other["name"]], "scores": scores(other)} for other in _as_cells(references)
        },
        "cells": cells,
    }  # fmt: skip


def tables(cell: Mapping[str, Any], seeds: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Measure -> [seeds, prompts] of the cell's runs, or of those with these seeds."""
    chosen = [run["measures"] for run in cell["runs"] if seeds is None or run["seed"] in seeds]
    names = [name for name in (chosen[0] if chosen else {}) if all(name in measures for measures in chosen)]
    return {name: np.array([measures[name] for measures in chosen], dtype=np.float64) for name in names}


def scores(cell: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Measure -> its mean with its interval, cut to what the measure can be."""
    return {name: _plain(mean_interval(values).within(*metric_of(name).range)) for name, values in tables(cell).items()}


def against(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Measure -> the paired change from theirs to ours, and the probability that ours is greater, over common seeds."""
    common = [run["seed"] for run in ours["runs"] if run["seed"] in {run["seed"] for run in theirs["runs"]}]
    alone = theirs["runs"] and theirs["runs"][0]["seed"] is None
    mine, other = tables(ours, None if alone else common), tables(theirs, None if alone else common)
    return {
        name: {
            "change": _plain(mean_interval(mine[name] - other[name]).within(*metric_of(name).change_range)),
            "greater": _plain(improvement(mine[name], other[name])),
        }
        for name in mine
        if name in other
    }


def table(results: Mapping[str, Any]) -> str:
    """One row for each run: the values that were varied, the seed, tokens, and the mean of each measure."""
    names = list(dict.fromkeys(name for c in results["cells"] for run in c["runs"] for name in run["measures"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*results["vary"], "seed", "tokens", "updates", *names])
    for cell in results["cells"]:
        for run in cell["runs"]:
            means = [_mean(run["measures"].get(name, [])) for name in names]
            writer.writerow([*cell["values"].values(), run["seed"], run["tokens"], run["updates"], *means])
    return out.getvalue()


def timing(grid: Grid, out: Path) -> dict[str, dict[str, list[float | None]]]:
    """Cell -> seed -> seconds of training at the points of the run's curves."""
    return {
        cell.name: {
            str(seed): runs.numbers(runs.thinned(seconds))
            for seed in grid.seeds
            if (seconds := _seconds(out / _place(cell, seed) / TIMES))
        }
        for cell in grid.cells
    }


def _work(grid: Grid, out: Path) -> tuple[list[Job], int]:
    """The jobs that are open, and how many are done.

    Raises: CheckpointError if a folder holds another run.
    """
    found, done = [], 0
    for name, folder, settings, teacher in _references(grid):
        if runs.is_measured(grid.base, grid.samples, out / folder):
            done += 1
        else:
            found.append(Job(
                name=name, folder=out / folder, function=runs.run_reference,
                arguments=(settings, grid.base, grid.samples, out / folder), options={"teacher": teacher},
            ))  # fmt: skip
    for seed in grid.seeds:
        for cell in grid.cells:
            place, settings = out / _place(cell, seed), cell.seeded(seed)
            runs.check_same(settings, place)
            if runs.is_measured(grid.base, grid.samples, place):
                done += 1
                continue
            found.append(Job(
                name=f"{cell.name} seed {seed}", folder=place, function=runs.run, size=settings.tokens, done=_tokens,
                arguments=(settings, grid.base, grid.samples, place),
            ))  # fmt: skip
    return found, done


def _references(grid: Grid) -> list[tuple[str, str, Any, bool]]:
    """Name, folder, settings and whether it is the teacher: the teacher, and each student that cells start from."""
    found = [(TEACHER, f"references/{TEACHER}", grid.base, True)] if grid.base.teacher else []
    starts: dict[str, Cell] = {}
    for cell in grid.cells:
        s = cell.settings
        told = json.dumps([s.student, s.student_layers, s.temperature])
        starts.setdefault(hashlib.sha256(told.encode()).hexdigest()[:8], cell)
    for key, cell in starts.items():
        name = START if len(starts) == 1 else f"{START} of {cell.name}"
        found.append((name, f"references/{START}-{key}", cell.settings, False))
    return found


def _place(cell: Cell, seed: int) -> str:
    return f"cells/{cell.folder}/seed-{seed}"


def _measured(folder: Path) -> dict[str, Any]:
    """The run's numbers, or nothing where it has not been finished."""
    if not (folder / runs.MEASURED).is_file():
        return {}
    found: dict[str, Any] = json.loads((folder / runs.MEASURED).read_text())
    del found["by"]
    found["by_position"] = {name: _mean_row(rows) for name, rows in found["by_position"].items()}
    return found


def _mean_row(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean over prompts at each position; null where less than REACHED of them have a value."""
    values = np.array(rows, dtype=np.float64)
    known = np.isfinite(values).sum(axis=0)
    means = np.nansum(values, axis=0) / np.maximum(known, 1)
    return runs.numbers(np.where(known >= REACHED * len(values), means, np.nan))


def _as_cells(references: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was not trained, in the form of a cell with one run and no seed."""
    return [{"name": name, "runs": [{"seed": None, **found}]} for name, found in references.items()]


def _plain(estimate: Interval) -> dict[str, float | None]:
    return dict(zip(("mean", "low", "high"), runs.numbers([estimate.mean, estimate.low, estimate.high]), strict=True))


def _mean(values: Sequence[float | None]) -> float | str:
    known = [value for value in values if value is not None]
    return float(f"{np.mean(known):.6g}") if known else ""


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(file.read_text())))
    except OSError:
        return []


def _tokens(folder: Path) -> int:
    rows = _rows(folder / TIMES)
    return int(rows[-1].get("time/total_timesteps") or 0) if rows else 0


def _seconds(file: Path) -> list[float]:
    spent = [float(row["time/sampling"]) + float(row["time/update"]) for row in _rows(file)]
    return [float(value) for value in np.cumsum(spent)]
