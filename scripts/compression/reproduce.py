"""Makes a smaller model that keeps its task: teaches the teacher, cuts the student from it, heals it, compares.

    python scripts/reproduce_compression.py [--out runs/compression] [--tasks docstrings] [--until healed]

Each part goes on where it was stopped: runs from their checkpoints, the comparison cell by cell. What is finished is
never run again. The parts, in `--out`/TASK:

    teacher/         `rlgkd train sft`: the whole model learns the task from references
    student/         `rlgkd cut`: the model without the block of layers that it misses least
    healed/          `rlgkd train on-policy-kd`: the student learns from its teacher
    three-seeds/, one-seed/   `rlgkd compare`: other ways to heal it, at equal tokens
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlgkd.scripts._errors import one_line_errors
from rlgkd.scripts.comparison.compare import compare
from rlgkd.scripts.compression.cells import ONE_SEED, SHARED, TASKS, THREE_SEEDS, Task, healing_grid
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.reproduction.command import parsed
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.cut import cut
from rlgkd.scripts.runs.folder import CONFIG, MODEL, SUMMARY

PARTS = ("teacher", "student", "healed", "compared")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line asks for."""

    out: Path
    until: str
    """The last of PARTS."""
    tokens: int
    """Tokens of each run, instead of its own; 0 is its own."""
    prompts: int
    """Prompts of each evaluation at an end."""
    cut_prompts: int
    jobs: int
    quiet: bool


def reproduce(task: Task, given: Given) -> Path:
    """Make what is not there yet, up to `given.until`; return the task's folder.

    Raises: what `rlgkd train`, `cut` and `compare` raise; SystemExit if some cells failed.
    """
    folder = (given.out / task.name).absolute()
    parts = PARTS[: PARTS.index(given.until) + 1]
    common = {**SHARED, "env": task.env, "eval_prompts": given.prompts}
    if given.tokens:
        common["tokens"] = given.tokens
    teacher, student = str(folder / "teacher" / MODEL), str(folder / "student")
    _trained("sft", folder / "teacher", {**task.teacher, "student": task.model, "teacher": None, **common}, given)
    if "student" in parts and not (folder / "student").exists():
        cut(teacher, task.layers, task.env, (), folder / "student", prompts=given.cut_prompts)
    if "healed" in parts:
        settings = {**task.healing, "student": student, "teacher": teacher, **common}
        _trained("on-policy-kd", folder / "healed", settings, given)
    if "compared" in parts:
        for name, methods, seeds in (("three-seeds", THREE_SEEDS, 3), ("one-seed", ONE_SEED, 1)):
            grid = healing_grid(
                task, methods, seeds, teacher=teacher, student=student, tokens=given.tokens, prompts=given.prompts
            )
            _, failed = compare(grid, folder / name, jobs=given.jobs, quiet=given.quiet)
            if failed:
                raise SystemExit(f"{task.name}: could not be run: {', '.join(failed)}; run again")
    return folder


def _trained(recipe: str, out: Path, settings: Mapping[str, Any], given: Given) -> None:
    """Train a run to its end, from where it stands."""
    if (out / SUMMARY).is_file():
        return
    if (out / CONFIG).is_file():
        train.resume(out, quiet=given.quiet)
    else:
        changes = [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
        train.start(read(recipe, changes), out, quiet=given.quiet)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the smaller models of all tasks, or of some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", choices=PARTS, default=PARTS[-1], help="the last part to make")
    parser.add_argument("--cut-prompts", type=int, default=12, help="on whose texts the cuts are measured")
    given = parsed(parser, "reproduce_compression.py", TASKS, "compression", arguments)
    with one_line_errors():
        for task in given.pop("tasks"):
            print(reproduce(task, Given(**given)))


if __name__ == "__main__":
    main()
