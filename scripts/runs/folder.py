"""A run's folder: what each name in it must be, and one process at a time."""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError, SettingError
from rlgkd.file_kinds import other_kind
from rlgkd.scripts.tracking.protocol import FOLDER as TRACKERS

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
"""None on Windows."""
CONFIG, SUMMARY, REPORT, LOCK = "config.yaml", "summary.json", "report.html", ".lock"
PROGRESS, TIMES, ROLLOUTS = "progress.csv", "times.csv", "rollouts.jsonl"
EVALUATIONS = "evaluations.csv"
"""Appended to as well, by a run that evaluates while it trains; see rlgkd.scripts.runs.course."""
CHECKPOINTS, MODEL, BEST, TENSORBOARD = "checkpoints", "model", "best", "tensorboard"
GROWING: Final = (PROGRESS, TIMES, ROLLOUTS)
"""Files that are appended to. Resuming cuts the tables to a row for each update, rollouts.jsonl to the size that the
checkpoint stores; those of older versions store the sizes of all three."""
_BUSY = (errno.EACCES, errno.EAGAIN)
"""What a system says of a lock that another process holds."""


def check_new(out: Path) -> None:
    """Raise CheckpointError unless a run can begin in `out`: it is not there yet, or an empty folder."""
    check_system()
    with checkpoint.writing(out, "give another --out"):
        in_use = (out.is_symlink() or out.exists()) and (not out.is_dir() or any(out.iterdir()))
    if in_use:
        raise CheckpointError("out", str(out), "it is in use; give another --out, or --resume it")


def check_names(out: Path) -> None:
    """Raise CheckpointError for a name in a run's folder whose content is not of its kind.

    A link is refused in the place of what is cut, appended to or replaced: its target is not the run's. Checkpoints and
    events may lie on another disk.
    """
    logs = (f"{TRACKERS}/{path.name}" for path in (out / TRACKERS).glob("*.log"))
    of_trackers = [TRACKERS, f"{TRACKERS}/id", *logs]
    for name in (*GROWING, EVALUATIONS, LOCK, MODEL, BEST, *of_trackers):
        if (out / name).is_symlink():
            raise CheckpointError("resume", str(out / name), "it is a link; put the run's own in its place")
    check_files(out, (CONFIG, SUMMARY, REPORT, *GROWING, EVALUATIONS, LOCK, *of_trackers[1:]))
    for name in (CHECKPOINTS, MODEL, BEST, TENSORBOARD, TRACKERS):
        if (out / name).exists() and not (out / name).is_dir():
            raise CheckpointError("resume", str(out / name), "it is no folder; put the run's own in its place")


def check_files(out: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError for a name at which there is something else than a file."""
    for name in names:
        if (out / name).exists() and (kind := other_kind(out / name)):
            raise CheckpointError("resume", str(out / name), f"it is {kind}; put the run's own file in its place")


def check_system() -> None:
    """Raise SettingError on a system where runs cannot be trained."""
    if fcntl is None:
        remedy = "training needs Linux or macOS (locks of files, signals); on Windows, run it in WSL"
        raise SettingError("system", platform.system(), remedy)


@contextmanager
def locked(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process, after `check_names`.

    Raises: CheckpointError if another holds it, or it cannot be held; with `wait`, another is waited for instead.
    """
    check_system()
    check_names(out)
    with checkpoint.writing(out / LOCK, "make it writable"):
        lock = (out / LOCK).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _BUSY:
                raise CheckpointError("out", str(out), "another process works in it; wait for it or stop it") from error
            remedy = f"its file system cannot lock files ({error.strerror}); put the run on a local disk"
            raise CheckpointError("out", str(out), remedy) from error
        yield
