"""Compares reward alone, distillation alone, mixtures and stages on a pretrained model whose reward can be exploited.

    python scripts/reproduce_rl_gkd.py [--out runs/rl-gkd] [--docs docs/rl-gkd] [--seeds 3]

The parts, in `--out`/TASK: `start/` and `teacher/`, runs on references, the second for longer; `measured/`, these
models on the held-out prompts; `cells/`, the comparison (`rlgkd compare`). Each goes on where it was stopped, cell by
cell, and what is finished is never run again. The page is written of what is there, and names what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd.scripts._errors import one_line_errors
from rlgkd.scripts.reproduction.command import Given, read_command
from rlgkd.scripts.reproduction.runs import MEASURED_IN, compared, measured, trained
from rlgkd.scripts.rl_gkd.cells import REFERENCE_SEED, SHARED, TASKS, Task, rl_gkd_grid
from rlgkd.scripts.rl_gkd.page import CELLS, gathered, write_page


def reproduce(given: Given[Task]) -> Path:
    """Run what has not been run, and write the page; return its path.

    Raises: what `rlgkd train` and `compare` raise; SystemExit if some cells are missing.
    """
    tasks = {task.name: task for task in given.tasks}
    found = {name: _results(task, given) for name, task in tasks.items()}
    page = write_page(found, tasks, given.docs)
    if any(results["missing"] for results in found.values()):
        raise SystemExit(f"some cells are missing, as {page} says; run again")
    return page


def _results(task: Task, given: Given[Task]) -> dict[str, Any]:
    folder = (given.out / task.name).absolute()
    models = {
        name: trained("sft", folder / name, _on_references(task, settings, given), quiet=given.quiet)
        for name, settings in (("start", task.start), ("teacher", task.teacher))
    }
    grid = rl_gkd_grid(task, given.seeds, **models, tokens=given.tokens, prompts=given.prompts)
    for name, model in {"raw": task.model, **models}.items():
        measured(model, grid.base, folder / MEASURED_IN / name)
    compared(grid, folder / MEASURED_IN, folder / CELLS, start="start", jobs=given.jobs, quiet=given.quiet)
    return gathered(folder, grid)


def _on_references(task: Task, settings: Mapping[str, Any], given: Given[Task]) -> dict[str, Any]:
    return {
        **SHARED,
        **settings,
        "env": task.env,
        "env_settings": dict(task.env_settings),
        "student": task.model,
        "teacher": None,
        "seed": REFERENCE_SEED,
        "eval_prompts": given.prompts,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare on all tasks, or some."""
    given = read_command("reproduce_rl_gkd.py", __doc__, TASKS, "rl-gkd", arguments, seeds=3)
    with one_line_errors():
        print(reproduce(given))


if __name__ == "__main__":
    main()
