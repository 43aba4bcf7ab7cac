"""Runs a coroutine in a thread of its own, so that waiting for it does not hold up computation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

R = TypeVar("R")
PATIENCE = 2.0
"""Seconds that a thread has to end after its coroutine has; one that is blocked is then abandoned."""
POLL = 0.05
"""Seconds between two looks whether the coroutine is stuck."""


class BackgroundTask(Generic[R]):
    """A running coroutine and its result. The thread ends when the result is taken or the task is cancelled."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        finish: Callable[[], R],
        *,
        stuck: Callable[[], bool] | None = None,
    ) -> None:
        """Start the coroutine.

        Args:
            coroutine: It leaves what it finds to `finish`.
            finish: Makes the result, in the thread that asks for it.
            stuck: Whether the coroutine blocks its thread for too long and is to be abandoned; None: it never is.
        """
        self._finish = finish
        self._stuck = stuck
        self._started = threading.Event()
        self._future: Future[None] = Future()
        # The coroutine sees the caller's context variables, as it would in the caller's own thread. A daemon, so that
        # one that is blocked for ever does not keep the process.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run_all, coroutine), daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Whether the coroutine has ended, or is stuck."""
        return self._future.done() or (self._stuck is not None and self._stuck())

    def result(self) -> R:
        """Wait for the result and end the thread; if the wait is interrupted, by Ctrl-C say, cancel the coroutine."""
        try:
            while not self.done():
                wait([self._future], None if self._stuck is None else POLL)
            if self._future.done():
                self._future.result()
                self._thread.join(PATIENCE)
        except BaseException:
            self.cancel()
            raise
        return self._finish()

    def cancel(self) -> None:
        """Cancel the coroutine, and wait until it has ended; one that is blocked is abandoned."""
        self._started.wait(PATIENCE)
        with suppress(RuntimeError, AttributeError):  # the loop is closed: the coroutine has ended already
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(PATIENCE)

    def _run_all(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run(self._run(coroutine))
        except BaseException as error:
            if not self._future.done():
                self._future.set_exception(error)

    async def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(coroutine)
        self._started.set()
        await self._task
        # Here and not when the loop has ended: that may wait long for threads which the coroutine left.
        self._future.set_result(None)
