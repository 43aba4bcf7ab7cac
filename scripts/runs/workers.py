"""Runs jobs side by side, each in a process of its own, and says how far they are on one live line.

A process is forked from a server that has the libraries imported, so starting one costs little. What it prints goes to
`log.txt` in the job's folder. It ends when the main process does, however that ends: what a job leaves must then be
enough to go on from. A job that fails, or is killed, does not stop the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.console import Console

from rlgkd.scripts.runs.progress_line import bar, fitting

LOG = "log.txt"
PRELOADED = ["rlgkd.scripts.comparison.run_cell"]
GLANCE = 0.5
"""Seconds between two looks at how far the jobs are."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to call, in which folder its log goes, and how far it is."""

    name: str
    folder: Path
    function: Callable[..., None]
    arguments: Sequence[Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1
    """Of the whole."""
    done: Callable[[Path], int] | None = None
    """How far it is, from its folder."""

    @property
    def reached(self) -> int:
        """Of `size`."""
        return self.done(self.folder) if self.done else 0


def side_by_side(jobs: Sequence[Job], *, most: int, console: Console, quiet: bool) -> dict[str, str]:
    """Run all jobs, `most` at a time; returns the last line of each that failed, by name.

    KeyboardInterrupt ends the processes and is raised.
    """
    if not jobs:
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting, failed, finished = list(jobs), {}, 0
    running: dict[Any, tuple[Job, Any]] = {}
    line = bar(console, quiet=quiet)
    row = line.add_task("starting", total=sum(job.size for job in jobs))
    try:
        with line:
            while waiting or running:
                while waiting and len(running) < most:
                    job = waiting.pop(0)
                    job.folder.mkdir(parents=True, exist_ok=True)
                    process = context.Process(target=_entered, args=(job,))
                    process.start()
                    running[process.sentinel] = (job, process)
                for sentinel in wait(list(running), timeout=GLANCE):
                    job, process = running.pop(sentinel)
                    process.join()
                    finished += job.size
                    if process.exitcode:
                        failed[job.name] = last_line(job.folder / LOG, process.exitcode)
                        console.print(f"{job.name} failed: {failed[job.name]}", highlight=False, markup=False)
                    elif quiet:
                        console.print(f"{job.name} done", highlight=False, markup=False)
                now = [(job, job.reached) for job, _ in running.values()]
                told = [f"{len(now)} running", *([f"{len(waiting)} to come"] if waiting else [])]
                told += [f"{job.name} {min(100, 100 * done // job.size)}%" for job, done in now]
                shown = fitting(told, console, between=", ")
                line.update(row, completed=finished + sum(done for _, done in now), description=shown)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return failed


def last_line(log: Path, code: int) -> str:
    """What a process said last, or how it was ended."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("rlgkd.errors.") if lines else f"exit code {code}"


def _entered(job: Job) -> None:
    """A job's process: its log, its end with the main process, its work. Ctrl-C is the main process's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with (job.folder / LOG).open("w") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    job.function(*job.arguments, **job.options)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
