"""Compares methods of 2025 and 2026 on where, when and from whom to distil, on embedded tasks, with equal tokens.

    python scripts/reproduce_frontier.py [--out runs/frontier] [--docs docs/frontier] [--tasks Translate,...]

All methods of a task have the same student, teacher, prompts, tokens, learning rate and evaluation. Its runs are one
comparison (`rlgkd compare`): a finished run is never run again, and a script that was stopped continues where it was. A
weak teacher is made first, by `rlgkd train on-policy-kd`. Each task has a page of its own, which is written when all of
its runs are there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.comparison.results import RESULTS
from rlgkd.scripts.comparison.run_cell import rounded
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.frontier.cells import TASKS, Task, task_grid
from rlgkd.scripts.frontier.page import write_page
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.reproduction.command import Given, read_command
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.course import TOKENS
from rlgkd.scripts.runs.folder import CONFIG, EVALUATIONS, MODEL, SUMMARY
from rlgkd.scripts.runs.tables import read_rows


def reproduce(given: Given[Task]) -> list[Path]:
    """Run what has not been run, and write each task's page; return their paths.

    Raises: CheckpointError as `compare`; SystemExit if some runs failed.
    """
    pages = []
    for task in given.tasks:
        folder = given.out / task.name
        teacher = made_teacher(task, folder, quiet=given.quiet) if task.teacher_from else ""
        grid = task_grid(task, given.seeds, teacher, tokens=given.tokens, prompts=given.prompts)
        compare(grid, folder, jobs=given.jobs, quiet=given.quiet)
        results = json.loads((folder / RESULTS).read_text())
        if results["missing"]:
            raise SystemExit(f"{task.name}: could not be run: {', '.join(results['missing'])}; run again")
        more = {"quality": task.quality, "tokens": grid.base.tokens, "prompts": given.prompts}
        curves = {cell.name: held_out_curve(cell, grid, folder) for cell in grid.cells}
        pages.append(write_page(task.name, {**results, **more, "curves": curves}, given.docs))
    return pages


def made_teacher(task: Task, folder: Path, *, quiet: bool) -> str:
    """Return the folder of a task's weak teacher, which is trained if it is not there."""
    run = folder / "teacher"
    if not (run / SUMMARY).is_file():
        if (run / CONFIG).is_file():
            train.resume(run, quiet=quiet)
        else:
            changes = [f"{key}={value}" for key, value in task.teacher_from.items()]
            train.start(read("on-policy-kd", [*changes, "threads=1"]), run, quiet=quiet)
    return str((run / MODEL).resolve())


def held_out_curve(cell: Cell, grid: Grid, folder: Path) -> dict[str, list[float | None]]:
    """Return the held-out measures while a cell trained, means over its seeds, at multiples of `eval_every` tokens.

    A seed measures some tokens later than another, and once more where a stage ends: each one's are read off on
    straight lines between its measurements.
    """
    at = np.arange(0, grid.base.tokens + 1, grid.base.eval_every)
    seeds = []
    for seed in grid.seeds:
        names, rows = read_rows(folder / cell.run_folder(seed) / EVALUATIONS)
        columns = {name: [to_float(row[number]) for row in rows] for number, name in enumerate(names)}
        seeds.append(
            {name: np.interp(at, columns[TOKENS], values) for name, values in columns.items() if "/" not in name}
        )
    shared = [name for name in seeds[0] if all(name in curve for curve in seeds)]
    return {"tokens": rounded(at)} | {name: rounded(np.mean([c[name] for c in seeds], axis=0)) for name in shared}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare on all tasks, or some."""
    print(*reproduce(read_command("reproduce_frontier.py", __doc__, TASKS, "frontier", arguments)), sep="\n")


if __name__ == "__main__":
    main()
