"""What the GKD paper shows on T5, on the three embedded tasks (Agarwal et al., ICLR 2024, arXiv 2306.13649).

    python scripts/reproduce_paper.py [--out runs/paper] [--docs docs/paper] [--tasks Translate,...] [--seeds 5]

On each task all methods start from the same SFT student and have the same tokens, seeds and evaluation prompts, and
those of an experiment the same learning rate. The runs of a task are one comparison (`rlgkd compare`): what has been
run is never run again, and a script that was stopped goes on where it was. Each finding of the paper is then a
difference between two cells, with its interval over seeds and prompts. No seed and no task is dropped: the page is
written when all runs are there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlgkd.lm import open_by_name
from rlgkd.scripts.comparison import run_cell as runs
from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.comparison.results import RESULTS
from rlgkd.scripts.paper.cells import DIVERGENCES, TASKS, PaperTask, grid, on_policy
from rlgkd.scripts.paper.page import write_page
from rlgkd.scripts.runs.train import make_env
from rlgkd.scripts.runs.workers import Job, run_jobs

TEMPERATURES = (0.3, 0.6)
"""At which on-policy students are sampled too, beside 1."""


def reproduce(tasks: Sequence[PaperTask], out: Path, docs: Path, *, seeds: int, tokens: int, prompts: int, jobs: int,
              quiet: bool) -> Path:  # fmt: skip
    """Run what has not been run, and write the page; returns its path.

    Raises: CheckpointError as `compare`.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        cells = grid(task, seeds, tokens=tokens, prompts=prompts)
        compare(cells, out / task.name, jobs=jobs, quiet=quiet)
        results = json.loads((out / task.name / RESULTS).read_text())
        failed = results["missing"] or _sample_colder(cells, out / task.name, jobs=jobs, quiet=quiet)
        if failed:
            raise SystemExit(f"{task.name}: could not be run: {', '.join(failed)}; run again")
        found[task.name] = {**results, "colder": _colder(cells, out / task.name)}
    return write_page(found, docs)


def _sample_colder(cells: Grid, out: Path, *, jobs: int, quiet: bool) -> list[str]:
    """Evaluate the on-policy students at lower temperatures; returns what failed."""
    open_ = [
        Job(name=f"{name} seed {seed} at {temperature}", folder=folder, function=_evaluate,
            arguments=(_run(cells, out, name, seed), cells, temperature, folder))
        for name in map(on_policy, DIVERGENCES) for seed in cells.seeds for temperature in TEMPERATURES
        if not runs.is_measured(cells.base, cells.samples, folder := _folder(out, name, seed, temperature))
    ]  # fmt: skip
    return [*run_jobs(open_, most=jobs or os.cpu_count() or 1, console=Console(stderr=True), quiet=quiet)]


def _evaluate(run: Path, cells: Grid, temperature: float, folder: Path) -> None:
    base = cells.base
    torch.set_num_threads(base.threads)
    task = make_env(base.env, base.env_settings, student=base.student, seed=0).task
    student = open_by_name(str(run / "model"), temperature=temperature)
    runs.write(runs.measure(student, None, task, base, cells.samples), base, cells.samples, folder)


def _colder(cells: Grid, out: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Temperature -> cell -> the measures of each seed."""

    def measured(name: str, temperature: float) -> list[dict[str, Any]]:
        files = [_folder(out, name, seed, temperature) / runs.MEASURED for seed in cells.seeds]
        return [json.loads(file.read_text())["measures"] for file in files]

    return {
        f"{temperature:g}": {name: measured(name, temperature) for name in map(on_policy, DIVERGENCES)}
        for temperature in TEMPERATURES
    }


def _run(cells: Grid, out: Path, name: str, seed: int) -> Path:
    cell = next(cell for cell in cells.cells if cell.name == name)
    return out / "cells" / cell.folder / f"seed-{seed}"


def _folder(out: Path, name: str, seed: int, temperature: float) -> Path:
    return out / "colder" / f"{name.replace(' ', '-')}-seed-{seed}-at-{temperature:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the whole, or some tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=Path("docs/paper"), help="folder of the page")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of them, with commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=0, help="of a run, instead of the task's own, for a trial")
    parser.add_argument("--prompts", type=int, default=200, help="of the evaluation")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side; 0 is one for each core")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.tasks.split(",") if name not in TASKS]
    if unknown:
        parser.error(f"--tasks: {unknown[0]} is not one of {', '.join(TASKS)}")
    page = reproduce(
        [TASKS[name] for name in given.tasks.split(",")], given.out, given.docs, seeds=given.seeds,
        tokens=given.tokens, prompts=given.prompts, jobs=given.jobs, quiet=given.quiet,
    )  # fmt: skip
    print(page)


if __name__ == "__main__":
    main()
