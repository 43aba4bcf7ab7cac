"""Runs a coroutine in a thread of its own, so that waiting for it does not hold up computation."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class BackgroundTask(Generic[T, R]):
    """A running coroutine and its result. The thread ends when the result is taken or the task is cancelled."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], finish: Callable[[T], R]) -> None:
        """Start the coroutine; `finish` makes the result of what it returns, in the thread that asks for the result."""
        self._finish = finish
        self._started = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        # The coroutine sees the caller's context variables, as it would in the caller's own thread.
        self._future = self._pool.submit(contextvars.copy_context().run, asyncio.run, self._run(coroutine))

    def done(self) -> bool:
        """Whether the coroutine has ended."""
        return self._future.done()

    def result(self) -> R:
        """Wait for the result and end the thread; if the wait is interrupted, by Ctrl-C say, cancel the coroutine."""
        try:
            returned = self._future.result()
        except BaseException:
            self.cancel()
            raise
        self._pool.shutdown()
        return self._finish(returned)

    def cancel(self) -> None:
        """Cancel the coroutine, and wait until it has ended."""
        self._started.wait()
        with suppress(RuntimeError):  # the loop is closed: the coroutine has ended already
            self._loop.call_soon_threadsafe(self._task.cancel)
        wait([self._future])
        self._pool.shutdown()

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(coroutine)
        self._started.set()
        return await self._task
