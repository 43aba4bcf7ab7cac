"""Signals while a run trains: the first stops at a whole update, a second one ends the process at once.

They are Ctrl-C, SIGTERM, and the SIGHUP of a terminal that closes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

from rlgkd.scripts._console import print_nowhere, say

SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))  # not on Windows
NOTICE = b"\nstopping at a whole update"
SECOND = b"; a second signal ends at once"


class StopRequest:
    """Whether the run was asked to stop, and when it may."""

    number: int | None = None
    """The signal that was received."""
    second_ends: bool = True
    """Whether a second signal has the system's own effect."""
    _waits: bool = False
    """Whether training looks at `number` by itself; outside of it a signal interrupts at once."""

    @contextmanager
    def at_whole_update(self) -> Iterator[None]:
        """Let the block end by itself after a signal; only then raise KeyboardInterrupt."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.number is not None:
            raise KeyboardInterrupt

    def heed(self, numbers: Iterable[int | None]) -> None:
        """Take over a signal that another process of the job has received."""
        for number in numbers:
            if number is not None:
                self.number = number

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; the next one has the system's own effect, whatever the process is doing."""
        again, self.number = self.number is not None, number
        if self.second_ends:
            for each in SIGNALS:
                if signal.getsignal(each) == self.receive:
                    signal.signal(each, signal.SIG_DFL)
        elif again:
            return
        # Not by the console, for whose lock a handler may not wait.
        notice = NOTICE + (SECOND if self.second_ends else b"") + b"\n"
        try:
            os.write(2, notice if self._waits else b"\n")
        except OSError:  # its terminal is gone: what is printed from now on must not stop the checkpoint
            print_nowhere(1, 2)
        if not self._waits:
            raise KeyboardInterrupt


@contextmanager
def stoppable(command: str, console: Console, *, second_ends: bool = True) -> Iterator[StopRequest]:
    """Exit with 130, 143 or 129, as a shell expects, after SIGINT, SIGTERM or SIGHUP; name the command that goes on.

    With `second_ends` False a second signal does nothing, for a job of a process that ends it itself, as torchrun and a
    comparison do: a signal to their group arrives at the job directly, and once more from that process.

    Outside of the main thread, which alone may handle signals, nothing is changed.
    """
    request = StopRequest()
    request.second_ends = second_ends
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup: it stays ignored
                before[number] = signal.signal(number, request.receive)
    try:
        yield request
    except KeyboardInterrupt:
        cause = " by a KeyboardInterrupt that no signal sent, such as a reward's" if request.number is None else ""
        say(console, f"stopped{cause}; go on with: {command}")
        sys.exit(128 + (request.number or signal.SIGINT))
    finally:
        # A second signal still ends at once while Python exits, whose own handler would print tracebacks then.
        ended = request.number is not None and request.second_ends
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if ended else handler)
