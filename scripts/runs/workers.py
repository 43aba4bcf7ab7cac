"""Runs jobs at the same time, each in a process of its own, and shows on one live line how far they are.

Processes are forked from a server that has imported the jobs' modules, so starting one costs little. A job prints to
`log.txt` in its folder. Its process ends when the main process does, however that ends: what a job leaves on disk must
then be enough to continue from. A job that fails, or is killed, does not stop the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from rlgkd import checkpoint
from rlgkd.errors import one_line
from rlgkd.scripts._console import say
from rlgkd.scripts.runs.progress_line import cut_to_width, live_line

LOG = "log.txt"
POLL_SECONDS = 0.5
"""Time between two looks at how far the jobs are."""
STOP_SECONDS = 60.0
"""Time that jobs have to end by themselves when they are stopped."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A function to call in a process of its own, and how far the call has come."""

    name: str
    folder: Path
    """Where its log goes."""
    function: Callable[..., None]
    arguments: Sequence[Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 1
    """Units of work, as `done` counts them."""
    done: Callable[[Path], int] | None = None
    """Reads from the folder how many units are done."""

    @property
    def reached(self) -> int:
        """Units of `size` that are done; 0 if the job does not say."""
        return self.done(self.folder) if self.done else 0


def run_jobs(jobs: Sequence[Job], *, most: int, console: Console, quiet: bool) -> dict[str, str]:
    """Run all jobs, at most `most` at a time; return the last line of each that failed, by name.

    KeyboardInterrupt ends the processes, by SIGTERM first, and is raised again.
    """
    if not jobs:
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted({job.function.__module__ for job in jobs}))
    waiting = list(jobs)
    running: dict[Any, tuple[Job, Any, Connection]] = {}  # by the process's sentinel
    failed: dict[str, str] = {}
    finished = 0
    line = live_line(console, quiet=quiet)
    task = line.add_task("starting", total=sum(job.size for job in jobs))
    try:
        with line:
            while waiting or running:
                while waiting and len(running) < most:
                    job = waiting.pop(0)
                    with checkpoint.writing(job.folder):
                        job.folder.mkdir(parents=True, exist_ok=True)
                    reason, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_run_job, args=(job, sender))
                    process.start()
                    sender.close()
                    running[process.sentinel] = (job, process, reason)
                for sentinel in wait(list(running), timeout=POLL_SECONDS):
                    job, process, reason = running.pop(sentinel)
                    process.join()
                    finished += job.size
                    if process.exitcode:
                        failed[job.name] = _reason(reason) or last_line(job.folder / LOG, process.exitcode)
                        say(console, f"{job.name} failed: {failed[job.name]}")
                    elif quiet:
                        say(console, f"{job.name} done")
                reached = [(job, job.reached) for job, _, _ in running.values()]
                pieces = [f"{len(running)} running"]
                if waiting:
                    pieces.append(f"{len(waiting)} to come")
                pieces += [f"{job.name} {min(100, 100 * done // job.size)}%" for job, done in reached]
                line.update(
                    task,
                    completed=finished + sum(done for _, done in reached),
                    description=cut_to_width(pieces, console, separator=", "),
                )
    finally:
        for _, process, _ in running.values():
            process.terminate()  # a run that trains saves a checkpoint
        for _, process, _ in running.values():
            process.join(STOP_SECONDS)
            process.kill()
            process.join()
    return failed


def last_line(log: Path, exit_code: int) -> str:
    """Return the last line that a failed process printed, or which signal ended it."""
    if exit_code < 0:
        return f"ended by signal {-exit_code}"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("rlgkd.errors.") if lines else f"exit code {exit_code}"


def _reason(reason: Connection) -> str:
    """What a job's process said of why it failed; empty if it could not."""
    try:
        return str(reason.recv())
    except EOFError:
        return ""


def _run_job(job: Job, sender: Connection) -> None:
    """Be the job's process, and say why it failed: not in its log alone, which a full disk does not take."""
    try:
        _work(job)
    except Exception as error:
        sender.send(f"{type(error).__name__}: {one_line(error)}")
        raise


def _work(job: Job) -> None:
    """Write to the job's log, end with the main process, do the work."""
    # The terminal sends Ctrl-C to the whole group of processes; the main process handles it and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with_parent, args=(parent.sentinel,), daemon=True).start()
    with (job.folder / LOG).open("w") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        # File descriptors and not sys.stdout, so that what C libraries print is caught as well.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    job.function(*job.arguments, **job.options)


def _exit_with_parent(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # sys.exit would end this thread alone
