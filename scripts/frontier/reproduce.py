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

from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.comparison.results import RESULTS
from rlgkd.scripts.frontier.cells import TASKS, Task, task_grid
from rlgkd.scripts.frontier.page import write_page
from rlgkd.scripts.reproduction.command import Given, read_command
from rlgkd.scripts.reproduction.curves import held_out_curves
from rlgkd.scripts.reproduction.runs import trained


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
        curves = held_out_curves(grid, folder)
        pages.append(write_page(task.name, {**results, **more, "curves": curves}, given.docs))
    return pages


def made_teacher(task: Task, folder: Path, *, quiet: bool) -> str:
    """Return the folder of a task's weak teacher, which is trained if it is not there."""
    return trained("on-policy-kd", folder / "teacher", {**task.teacher_from, "threads": 1}, quiet=quiet)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare on all tasks, or some."""
    print(*reproduce(read_command("reproduce_frontier.py", __doc__, TASKS, "frontier", arguments)), sep="\n")


if __name__ == "__main__":
    main()
