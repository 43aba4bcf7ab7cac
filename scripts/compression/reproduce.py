"""Makes a smaller model that keeps its task: teaches the teacher, cuts the student from it, heals it, compares.

    python scripts/reproduce_compression.py [--out runs/compression] [--tasks docstrings] [--until healed]

Each part goes on where it was stopped: runs from their checkpoints, the comparison cell by cell. What is finished is
never run again. The parts, in `--out`/TASK:

    teacher/         `rlgkd train sft`: the whole model learns the task from references
    student/         `rlgkd cut`: the model without the block of layers that it misses least
    healed/          `rlgkd train on-policy-kd`: the student learns from its teacher
    measured/, speed.json    these models on the held-out prompts, and their speed in plain transformers
    three-seeds/, one-seed/   `rlgkd compare`: other ways to heal it, at equal tokens

At the end, after whichever part is the last, the page is written of all that is there; it names what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlgkd import checkpoint
from rlgkd.scripts._errors import one_line_errors
from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.compression.cells import SHARED, TASKS, Task, healing_grid
from rlgkd.scripts.compression.page import SPEED, gathered, write_page
from rlgkd.scripts.compression.speed import ROWS, speed
from rlgkd.scripts.reproduction.command import parsed
from rlgkd.scripts.reproduction.runs import MEASURED_IN, compared, measured, trained
from rlgkd.scripts.runs.cut import cut
from rlgkd.scripts.runs.folder import MODEL
from rlgkd.scripts.runs.train import make_env

PARTS = ("teacher", "student", "healed", "compared")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line asks for."""

    out: Path
    docs: Path
    until: str
    """The last of PARTS."""
    tokens: int
    """Tokens of each run, instead of its own; 0 is its own."""
    prompts: int
    """Prompts of each evaluation at an end."""
    cut_prompts: int
    speed_pairs: int
    jobs: int
    quiet: bool


def reproduce(task: Task, given: Given) -> Path:
    """Make what is not there yet, up to `given.until`; return the task's folder.

    Raises: what `rlgkd train`, `cut` and `compare` raise.
    """
    folder = (given.out / task.name).absolute()
    parts = PARTS[: PARTS.index(given.until) + 1]
    common = {**SHARED, "env": task.env, "env_settings": dict(task.env_settings), "eval_prompts": given.prompts}
    if given.tokens:
        common["tokens"] = given.tokens
    student = folder / "student"
    settings = {**task.teacher, "student": task.model, "teacher": None, **common}
    teacher = trained("sft", folder / "teacher", settings, quiet=given.quiet)
    models = {"raw": task.model, "teacher": teacher}
    if "student" in parts:
        if not student.exists():
            overrides = [f"{name}={json.dumps(value)}" for name, value in task.env_settings.items()]
            cut(teacher, task.layers, task.env, overrides, student, prompts=given.cut_prompts)
        models["student"] = str(student)
    if "healed" in parts:
        settings = {**task.healing, "student": str(student), "teacher": teacher, **common}
        models["healed"] = trained("on-policy-kd", folder / "healed", settings, quiet=given.quiet)
    grids = grids_of(task, folder, given)
    base = next(iter(grids.values())).base
    measures = folder / MEASURED_IN
    for name, model in models.items():
        measured(model, base, measures / name)
    if "healed" in models and not (folder / SPEED).is_file():
        task_made = make_env(task.env, task.env_settings, student=teacher, seed=0).task
        prompts = [task_made.encode_prompt(task_made.item("test", 0, index)) for index in range(max(ROWS))]
        pair = {"healed student": models["healed"], "teacher": teacher}
        found = speed(pair, prompts, new_tokens=task_made.max_new_tokens, pairs=given.speed_pairs)
        checkpoint.atomic_write(folder / SPEED, json.dumps(found, indent=1) + "\n")
    if "compared" in parts:
        for name, grid in grids.items():
            compared(grid, measures, folder / name, start="student", jobs=given.jobs, quiet=given.quiet)
    return folder


def grids_of(task: Task, folder: Path, given: Given) -> dict[str, Grid]:
    """Return the comparison's parts as grids, by folder."""
    models = {"teacher": str(folder / "teacher" / MODEL), "student": str(folder / "student")}
    return {
        name: healing_grid(task, part, **models, tokens=given.tokens, prompts=given.prompts)
        for name, part in task.parts.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the smaller models of all tasks, or of some, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs/compression"), help="folder of the page")
    parser.add_argument("--until", choices=PARTS, default=PARTS[-1], help="the last part to make")
    parser.add_argument("--cut-prompts", type=int, default=12, help="on whose texts the cuts are measured")
    parser.add_argument("--speed-pairs", type=int, default=5, help="of teacher and student in plain transformers")
    found = parsed(parser, "reproduce_compression.py", TASKS, "compression", arguments)
    with one_line_errors():
        tasks = {task.name: task for task in found.pop("tasks")}
        given = Given(**found)
        folders = {name: reproduce(task, given) for name, task in tasks.items()}
        results = {
            name: gathered(task, folders[name], grids_of(task, folders[name], given)) for name, task in tasks.items()
        }
        print(write_page(results, tasks, given.docs))
        if given.until == PARTS[-1] and any(one["missing"] for one in results.values()):
            raise SystemExit("some cells are missing, as the page says; run again")


if __name__ == "__main__":
    main()
