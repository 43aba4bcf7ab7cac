"""The command line of such a script."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlgkd.scripts._errors import check_one_process, one_line_errors

Task = TypeVar("Task")


@dataclass(frozen=True, kw_only=True)
class Given(Generic[Task]):
    """What a command line asks for."""

    tasks: Sequence[Task]
    out: Path
    """Folder of the runs."""
    docs: Path
    """Folder of the page."""
    seeds: int
    tokens: int
    """Tokens of a run; 0 are the task's own."""
    prompts: int
    """Prompts of the evaluation."""
    jobs: int
    """Runs at the same time; 0 is one for each core."""
    quiet: bool


def read_command(
    script: str,
    doc: str | None,
    tasks: Mapping[str, Task],
    name: str,
    arguments: Sequence[str] | None,
    *,
    seeds: int = 5,
) -> Given[Task]:
    """Read the command line of a script; leave with a message if it cannot be understood.

    Args:
        script: The script's name, for an error.
        doc: What `--help` shows.
        tasks: Name -> task, all of them by default.
        name: That of the folders in runs/ and docs/.
        arguments: Those of the process by default.
        seeds: How many where the command line says nothing.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs") / name, help="folder of the page")
    parser.add_argument("--seeds", type=int, default=seeds)
    return Given(**parsed(parser, script, tasks, name, arguments))


def parsed(
    parser: argparse.ArgumentParser,
    script: str,
    tasks: Mapping[str, Task],
    name: str,
    arguments: Sequence[str] | None,
) -> dict[str, Any]:
    """Read a command line with a parser that has what is a script's own, and all that each of them takes besides.

    Returns: What was given, by name; `tasks` is a list of tasks.
    """
    with one_line_errors():
        check_one_process(script)
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder of the runs")
    parser.add_argument("--tasks", default=",".join(tasks), help="some of them, with commas")
    parser.add_argument("--tokens", type=int, default=0, help="of a run, instead of the task's own, for a trial")
    parser.add_argument("--prompts", type=int, default=200, help="of the evaluation")
    parser.add_argument("--jobs", type=int, default=0, help="runs at the same time; 0 is one for each core")
    parser.add_argument("--quiet", action="store_true")
    found = vars(parser.parse_args(arguments))
    names = found.pop("tasks").split(",")
    unknown = [one for one in names if one not in tasks]
    if unknown:
        parser.error(f"--tasks: {unknown[0]} is not one of {', '.join(tasks)}")
    return {"tasks": [tasks[one] for one in names], **found}
