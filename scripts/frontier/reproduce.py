"""Compares methods of 2025 and 2026 on where, when and from whom to distil, on embedded tasks, with equal tokens.

    python scripts/reproduce_frontier.py [--out runs/frontier] [--docs docs/frontier] [--tasks 'Translate;...']

All methods of a task have the same student, teacher, prompts, tokens, learning rate and evaluation. Its runs are one
comparison (`rlgkd compare`): a finished run is never run again, and a script that was stopped continues where it was. A
weak teacher is made first, by `rlgkd train on-policy-kd`. The page is written when all runs of the tasks are there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlgkd.scripts._errors import check_one_process, one_line_errors
from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.comparison.results import RESULTS
from rlgkd.scripts.comparison.run_cell import rounded
from rlgkd.scripts.config.run import read
from rlgkd.scripts.frontier.cells import TASKS, Task, task_grid
from rlgkd.scripts.frontier.page import write_page
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.report.progress_csv import read_table
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.folder import CONFIG, EVALUATIONS, MODEL, SUMMARY

TOKENS = "time/total_timesteps"


def reproduce(
    tasks: Sequence[Task], out: Path, docs: Path, *, seeds: int, tokens: int, prompts: int, jobs: int, quiet: bool
) -> Path:
    """Run what has not been run, and write the page; return its path.

    Raises: CheckpointError as `compare`; SystemExit if some runs failed.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        folder = out / task.name.replace(", ", "-").replace(" ", "-")
        teacher = made_teacher(task, folder, quiet=quiet) if task.teacher_from else ""
        grid = task_grid(task, seeds, teacher, tokens=tokens, prompts=prompts)
        compare(grid, folder, jobs=jobs, quiet=quiet)
        results = json.loads((folder / RESULTS).read_text())
        if results["missing"]:
            raise SystemExit(f"{task.name}: could not be run: {', '.join(results['missing'])}; run again")
        more = {"quality": task.quality, "tokens": grid.base.tokens, "prompts": prompts}
        curves = {cell.name: held_out_curve(cell, grid, folder) for cell in grid.cells}
        found[task.name] = {**results, **more, "curves": curves}
    return write_page(found, docs)


def made_teacher(task: Task, folder: Path, *, quiet: bool) -> str:
    """Return the folder of a task's weak teacher, which is trained if it is not there."""
    run = folder / "teacher"
    settings = read("on-policy-kd", [f"{key}={value}" for key, value in task.teacher_from.items()] + ["threads=1"])
    if not (run / SUMMARY).is_file():
        train.resume(run, quiet=quiet) if (run / CONFIG).is_file() else train.start(settings, run, quiet=quiet)
    return str((run / MODEL).resolve())


def held_out_curve(cell: Cell, grid: Grid, folder: Path) -> dict[str, list[float | None]]:
    """Return the held-out measures while a cell trained, means over its seeds, and the tokens at which they are."""
    tables = []
    for seed in grid.seeds:
        names, rows = read_table((folder / cell.run_folder(seed) / EVALUATIONS).read_text(encoding="utf-8"))
        tables.append({name: [to_float(row[column]) for row in rows] for column, name in enumerate(names)})
    shared = [name for name in tables[0] if "/" not in name and all(name in table for table in tables)]
    # A seed may pass a multiple of `eval_every` some tokens later than another, and all pass the same multiples.
    length = min(len(table[TOKENS]) for table in tables)
    curve = {"tokens": TOKENS, **{name: name for name in shared}}
    return {
        name: rounded(np.mean([table[column][:length] for table in tables], axis=0)) for name, column in curve.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare on all tasks, or some."""
    with one_line_errors():
        check_one_process("reproduce_frontier.py")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=Path("docs/frontier"), help="folder of the page")
    parser.add_argument("--tasks", default=";".join(TASKS), help="some of them, with semicolons")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=0, help="of a run, instead of the task's own, for a trial")
    parser.add_argument("--prompts", type=int, default=200, help="of the evaluation")
    parser.add_argument("--jobs", type=int, default=0, help="runs at the same time; 0 is one for each core")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args(arguments)
    names = given.tasks.split(";")
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        parser.error(f"--tasks: {unknown[0]} is not one of {'; '.join(TASKS)}")
    page = reproduce(
        [TASKS[name] for name in names],
        given.out,
        given.docs,
        seeds=given.seeds,
        tokens=given.tokens,
        prompts=given.prompts,
        jobs=given.jobs,
        quiet=given.quiet,
    )
    print(page)


if __name__ == "__main__":
    main()
