"""A time limit for a function that is not `async`: a late function has failed, whatever it makes of the interruption.

In the main thread a signal interrupts the function, so that nothing goes on running. Elsewhere, and where there are no
signals, the function runs in a thread that is abandoned at the limit.
"""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
AGAIN = 1.0
"""Seconds after which a function that goes on is interrupted again."""
Warn = Callable[[str], None]


def late(seconds: float) -> TimeoutError:
    """Return the failure of a function that took longer than its limit."""
    return TimeoutError(f"it took longer than {seconds:g} seconds")


def call_within(seconds: float | None, function: Callable[[], T], *, warn: Warn) -> T:
    """Call a function, for at most so many seconds; None sets no limit.

    `warn` is called with the reason where the limit cannot be held: the function goes on running.

    Raises: TimeoutError if it took longer, also if it returned or raised something then; what it raises.
    """
    if seconds is None:
        return function()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_kill"):
        return _InterruptedCall(seconds, warn)(function)
    return _call_in_thread(seconds, function, warn)


class _Interrupt(BaseException):
    """Interrupts a function at its limit; an `except Exception` of the function's own does not stop it."""


class _InterruptedCall:
    """A call in the main thread, interrupted by a signal that another thread sends at the limit.

    No timer of the process is used: one of the user's goes on, and the function may set or reset timers of its own.
    """

    def __init__(self, seconds: float, warn: Warn) -> None:
        self._seconds = seconds
        self._warn = warn
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._sent = self._heard = 0
        self._previous: Any = None

    def __call__(self, function: Callable[[], T]) -> T:
        self._previous = signal.signal(signal.SIGALRM, self._on_signal)
        watch = threading.Thread(target=self._interrupt_when_late, daemon=True)
        began = time.perf_counter()
        try:
            watch.start()
            returned = self._run(function)
            if time.perf_counter() - began > self._seconds:
                raise late(self._seconds)
            return returned
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, _Interrupt) or time.perf_counter() - began > self._seconds:
                raise late(self._seconds).with_traceback(error.__traceback__) from None
            raise
        finally:
            self._ended.set()
            with self._lock:  # nothing is sent from here on
                pass
            signal.signal(signal.SIGALRM, signal.SIG_DFL if self._previous is None else self._previous)
            watch.join()

    def _run(self, function: Callable[[], T]) -> T:
        """Call the function; only under this frame is it interrupted."""
        return function()

    def _interrupt_when_late(self) -> None:
        warned, pause = False, self._seconds
        while not self._ended.wait(pause):
            with self._lock:
                # A handler of the function's own is left alone; most functions soon put back the one that was there.
                if not self._ended.is_set() and signal.getsignal(signal.SIGALRM) == self._on_signal:
                    self._sent += 1
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            if pause == AGAIN and not warned:
                warned = True
                self._warn("it cannot be interrupted, and is waited for")
            pause = AGAIN

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Counted, for the next one may be sent before this one is dealt with; several may arrive as one.
        if self._sent > self._heard:
            self._heard += 1
            # A signal may come while the one before it is dealt with: after a call into C that no signal interrupts.
            while frame is not None and not (frame.f_code is self._run.__code__ and frame.f_locals["self"] is self):
                frame = frame.f_back
            if frame is not None:
                raise _Interrupt
        elif callable(self._previous):  # a timer of the user's
            self._previous(number, frame)
        elif self._previous == signal.SIG_DFL:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGALRM)


def _call_in_thread(seconds: float, function: Callable[[], T], warn: Warn) -> T:
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    wait([outcome], seconds)
    if not outcome.done():
        warn("it goes on running in the background")
        raise late(seconds)
    thread.join()
    return outcome.result()
