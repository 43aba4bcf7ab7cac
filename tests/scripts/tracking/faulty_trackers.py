"""Trackers that fail on purpose, in the ways in which libraries and networks do; each is named by its path."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd.scripts.tracking.protocol import TrackedRun


class Records:
    """Writes each call into `NAME.calls` in the run's folder, then does its harm."""

    def start(self, run: TrackedRun) -> str:
        self.file = run.folder / f"{type(self).__name__}.calls"
        self.called("start", run.id, run.resumed)
        return "a file"

    def numbers(self, values: Mapping[str, float], tokens: int) -> None:
        self.called("numbers", tokens, len(values))

    def texts(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> None:
        self.called("texts", tokens, *[row["completion"] for row in rows])

    def files(self, paths: Sequence[Path]) -> None:
        self.called("files", *[path.name for path in paths])

    def end(self, *, whole: bool) -> None:
        self.called("end", whole)

    def called(self, *what: object) -> None:
        with self.file.open("a") as file:
            file.write(f"{what}\n")
        self.harm(str(what[0]))

    def harm(self, call: str) -> None:
        pass


class Raises(Records):
    """Each call but the first raises, from an ordinary error to what ends a process."""

    count = 0

    def harm(self, call: str) -> None:
        kinds = (ConnectionError, KeyError, MemoryError, RecursionError, SystemExit, KeyboardInterrupt, BaseException)
        if call != "start":
            self.count += 1
            raise kinds[self.count % len(kinds)](f"fault {self.count}\nof many")


class DoesNotStart(Records):
    def harm(self, call: str) -> None:
        raise PermissionError("no key")


class Exits(Records):
    def harm(self, call: str) -> None:
        if call == "texts":
            os._exit(3)


class Kills(Records):
    """Ends its whole group of processes, which would be the training's."""

    def harm(self, call: str) -> None:
        if call == "texts":
            os.killpg(0, signal.SIGKILL)


class Hangs(Records):
    def harm(self, call: str) -> None:
        if call == "texts":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)


class Meddles(Records):
    """Seeds generators, prints into every stream, changes the folder and the environment, leaves a thread."""

    def harm(self, call: str) -> None:
        random.seed(0)
        os.environ["OMP_NUM_THREADS"] = "7"
        os.chdir("/")
        print('{"ended": "not JSON of the protocol"')
        os.write(1, b"{}\n[]\n\xff\n")
        sys.stderr.write("\x1b[2J")
        if call == "start":
            threading.Thread(target=time.sleep, args=(3600,)).start()


class Interrupts(Records):
    """Stops the training once, as Ctrl-C does."""

    count = 0

    def start(self, run: TrackedRun) -> str:
        self.resumed = run.resumed
        return super().start(run)

    def harm(self, call: str) -> None:
        self.count += call == "texts"
        if self.count == 3 and not self.resumed:
            self.count += 1
            os.kill(os.getppid(), signal.SIGINT)
