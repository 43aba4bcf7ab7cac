"""Repeats on the three embedded tasks what the GKD paper shows on T5 (Agarwal et al., ICLR 2024, arXiv 2306.13649).

    python scripts/reproduce_paper.py [--out runs/paper] [--docs docs/paper] [--tasks Translate,...] [--seeds 5]

On each task all methods start from the same SFT student and have the same tokens, seeds and evaluation prompts, and
those of an experiment the same learning rate. The runs of a task are one comparison (`rlgkd compare`): a finished run
is never run again, and a script that was stopped continues where it was. Each finding of the paper is then a difference
between two cells, with its interval over seeds and prompts. No seed and no task is dropped: the page is written when
all runs are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.comparison.results import RESULTS
from rlgkd.scripts.comparison.run_cell import MEASURED, is_measured
from rlgkd.scripts.paper.cells import COMPARED_DIVERGENCES, TASKS, PaperTask, on_policy, paper_grid
from rlgkd.scripts.paper.page import write_page
from rlgkd.scripts.reproduction.command import Given, read_command
from rlgkd.scripts.reproduction.runs import measured
from rlgkd.scripts.runs.folder import MODEL
from rlgkd.scripts.runs.workers import Job, run_jobs

TEMPERATURES = (0.3, 0.6)
"""Lower temperatures at which on-policy students are sampled too."""


def reproduce(given: Given[PaperTask]) -> Path:
    """Run what has not been run, and write the page; return its path.

    Raises: CheckpointError as `compare`; SystemExit if some runs failed.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in given.tasks:
        grid = paper_grid(task, given.seeds, tokens=given.tokens, prompts=given.prompts)
        folder = given.out / task.name
        compare(grid, folder, jobs=given.jobs, quiet=given.quiet)
        results = json.loads((folder / RESULTS).read_text())
        failed = results["missing"] or _sample_colder(grid, folder, jobs=given.jobs, quiet=given.quiet)
        if failed:
            raise SystemExit(f"{task.name}: could not be run: {', '.join(failed)}; run again")
        found[task.name] = {**results, "colder": _colder_measures(grid, folder)}
    return write_page(found, given.docs)


def _sample_colder(grid: Grid, out: Path, *, jobs: int, quiet: bool) -> list[str]:
    """Evaluate the on-policy students at lower temperatures; return the names of what failed."""
    open_jobs = []
    for name in map(on_policy, COMPARED_DIVERGENCES):
        cell = next(cell for cell in grid.cells if cell.name == name)
        for seed in grid.seeds:
            for temperature in TEMPERATURES:
                folder = _colder_folder(out, name, seed, temperature)
                if is_measured(grid.base, grid.samples, folder):
                    continue
                open_jobs.append(
                    Job(
                        name=f"{name} seed {seed} at {temperature}",
                        folder=folder,
                        function=_evaluate_colder,
                        arguments=(out / cell.run_folder(seed), grid, temperature, folder),
                    )
                )
    return list(run_jobs(open_jobs, most=jobs or os.cpu_count() or 1, console=Console(stderr=True), quiet=quiet))


def _evaluate_colder(run: Path, grid: Grid, temperature: float, folder: Path) -> None:
    """Evaluate a run's model at a temperature, in the job's process."""
    measured(str(run / MODEL), grid.base, folder, samples=grid.samples, temperature=temperature, teacher=False)


def _colder_measures(grid: Grid, out: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return temperature -> cell -> the measures of each seed."""

    def measures(name: str, temperature: float) -> list[dict[str, Any]]:
        files = [_colder_folder(out, name, seed, temperature) / MEASURED for seed in grid.seeds]
        return [json.loads(file.read_text())["measures"] for file in files]

    return {
        f"{temperature:g}": {name: measures(name, temperature) for name in map(on_policy, COMPARED_DIVERGENCES)}
        for temperature in TEMPERATURES
    }


def _colder_folder(out: Path, name: str, seed: int, temperature: float) -> Path:
    return out / "colder" / f"{name.replace(' ', '-')}-seed-{seed}-at-{temperature:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Reproduce all tasks, or some."""
    print(reproduce(read_command("reproduce_paper.py", __doc__, TASKS, "paper", arguments)))


if __name__ == "__main__":
    main()
