"""The training's side of its trackers: starts their processes and sends them what they take, without ever waiting.

Calls are put into a queue that a thread writes to the tracker's pipe. A tracker that does not keep up, hangs or is gone
loses calls, which are counted; training goes on to the same bits. At the end it has a limited time for what is left.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from stable_baselines3.common.logger import KVWriter

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError
from rlgkd.scripts.tracking.protocol import FOLDER, TrackedRun

ID_FILE = "id"
ID = re.compile(r"[0-9a-f]{8}")
WAITING = 10_000
"""Calls that may wait for a tracker; later ones are lost."""
SECONDS_TO_END = 60.0
"""How long training waits at its end for a tracker that has calls left."""
_END = None


class TrackerProcess:
    """A tracker in a process of its own; no call of this class waits but `close`."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.lost = 0
        """Calls that the tracker did not take."""
        self.answers: dict[str, Any] = {}
        """What it has said."""
        self._calls: queue.Queue[str | None] = queue.Queue(WAITING)
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        with log.open("ab") as printed:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlgkd.scripts.tracking.process", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                start_new_session=True,  # Ctrl-C is the training's: it ends the tracker itself
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._threads = [
            threading.Thread(target=self._write, args=(self._process.stdin,), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, call: str, content: Any, tokens: int = 0) -> None:
        """Put a call in line; it is lost if the line is full or the tracker has gone."""
        try:
            self._calls.put_nowait(json.dumps({"call": call, "content": content, "tokens": tokens}))
        except queue.Full:
            self.lost += 1

    def news(self) -> list[str]:
        """Return the lines on what it has said since the last time."""
        lines = []
        with suppress(queue.Empty):
            while True:
                lines.append(self._news.get_nowait())
        return lines

    def close(self, seconds: float) -> None:
        """Wait for what is in line, and end the process; it is killed after so many seconds."""
        with suppress(queue.Full):
            self._calls.put_nowait(_END)
        in_time = True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            in_time = False
            self._news.put(f"{self.name}: it did not end within {seconds:.0f} s and is stopped")
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what the library has started, too
        self._process.wait()
        for thread in self._threads:
            thread.join(5)
        self.lost += self._calls.qsize()
        if in_time and "ended" not in self.answers and "failed" not in self.answers:
            self._news.put(f"{self.name}: its process ended early (exit code {self._process.returncode})")
        if failures := self.answers.get("failures", 0):
            self._news.put(f"{self.name}: {failures} of {self.answers['ended']} calls failed")
        if self.lost:
            self._news.put(f"{self.name}: {self.lost} calls did not reach it")

    def _write(self, pipe: IO[bytes]) -> None:
        gone = False
        with suppress(OSError), pipe:
            while (call := self._calls.get()) is not _END:
                if gone:
                    self.lost += 1
                    continue
                try:
                    pipe.write(call.encode() + b"\n")
                    pipe.flush()
                except OSError:
                    gone = True
                    self.lost += 1

    def _read(self, pipe: IO[bytes]) -> None:
        with suppress(OSError), pipe:
            for line in pipe:
                try:
                    said = json.loads(line)
                    self.answers |= said
                except (ValueError, TypeError, RecursionError):
                    continue  # a tracker of one's own has written into the answers
                if where := said.get("started"):
                    self._news.put(f"{self.name}: {where}")
                if failure := said.get("failed"):
                    self._news.put(f"{self.name}: a call failed and training goes on: {failure}")


class Trackers(KVWriter):
    """All trackers of a run, as a writer of the agent's logger."""

    def __init__(
        self, names: Sequence[str], out: Path, *, name: str, project: str, settings: Mapping[str, Any]
    ) -> None:
        """Start the processes, if there are any trackers.

        Raises: CheckpointError if the run's folder takes no file, or holds another id than was written there.
        """
        self._processes: list[TrackerProcess] = []
        if not names:
            return
        with checkpoint.writing(out / FOLDER):
            (out / FOLDER).mkdir(exist_ok=True)
        id_file = out / FOLDER / ID_FILE
        resumed = id_file.is_file()
        if not resumed:
            checkpoint.atomic_write(id_file, secrets.token_hex(4) + "\n")
        run = TrackedRun(
            id=_read_id(id_file),
            name=name,
            project=project,
            folder=out.resolve(),
            settings=settings,
            resumed=resumed,
        )
        for tracker in names:
            log = out / FOLDER / f"{Path(tracker).name.replace(':', '-')}.log"
            self._processes.append(TrackerProcess(tracker, log))
        self._send("start", {**asdict(run), "folder": str(run.folder)})

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._processes)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send the numbers of an update that TensorBoard gets too; `step` are tokens."""
        wanted = {name: value for name, value in key_values.items() if "tensorboard" not in (key_excluded[name] or ())}
        self.numbers(wanted, step)

    def numbers(self, values: Mapping[str, Any], tokens: int) -> None:
        """Send those of the values that are finite numbers."""
        finite = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
        }
        if finite:
            self._send("numbers", finite, tokens)

    def texts(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
        """Send texts as rows of a table; values that are neither text nor number are sent as JSON."""
        if rows:
            self._send("texts", [{name: _cell(value) for name, value in row.items()} for row in rows], tokens)

    def files(self, paths: Sequence[Path]) -> None:
        """Send the files that are there."""
        self._send("files", [str(path.resolve()) for path in paths if path.is_file()])

    def news(self) -> list[str]:
        """Return lines on what the trackers have said since the last time."""
        return [line for process in self._processes for line in process.news()]

    def end(self, *, whole: bool) -> list[str]:
        """End all, each within SECONDS_TO_END; returns the last lines. A second call does nothing."""
        self._send("end", whole)
        for process in self._processes:
            process.close(SECONDS_TO_END)
        lines = self.news()
        self._processes = []
        return lines

    def close(self) -> None:
        """Do nothing: the run's files follow after its last update, and `end` closes."""

    def _send(self, call: str, content: Any, tokens: int = 0) -> None:
        for process in self._processes:
            process.send(call, content, tokens)


NO_TRACKERS = Trackers((), Path(), name="", project="", settings={})


def _read_id(file: Path) -> str:
    with file.open("rb") as content:
        found = content.read(100).decode(errors="replace").strip()
    if not ID.fullmatch(found):  # libraries take it for a part of their requests
        remedy = f"it holds {found!r:.40}, which is no id; delete it to begin a new tracked run"
        raise CheckpointError("trackers", str(file), remedy)
    return found


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, default=str)
