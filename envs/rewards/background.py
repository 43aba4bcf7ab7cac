"""A coroutine in a thread of its own, so that what waits does not hold up what computes."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

Told = TypeVar("Told")
Made = TypeVar("Made")


class BackgroundTask(Generic[Told, Made]):
    """Runs from now on; ends when its result is taken, or it is called off. No thread is left then."""

    def __init__(self, coroutine: Coroutine[Any, Any, Told], then: Callable[[Told], Made]) -> None:
        """Begin; `then` makes the result of what the coroutine returned, in the thread that takes it."""
        self._then, self._began, self._pool = then, threading.Event(), ThreadPoolExecutor(1)
        self._future = self._pool.submit(contextvars.copy_context().run, asyncio.run, self._watched(coroutine))

    def done(self) -> bool:
        """Whether the result is there."""
        return self._future.done()

    def result(self) -> Made:
        """Wait for it, and end the thread; whatever breaks the waiting off, such as Ctrl-C, calls it off."""
        try:
            told = self._future.result()
        except BaseException:
            self.cancel()
            raise
        self._pool.shutdown()
        return self._then(told)

    def cancel(self) -> None:
        """Cancel it, and wait until it has ended."""
        self._began.wait()
        with suppress(RuntimeError):  # the loop is closed: it has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        wait([self._future])
        self._pool.shutdown()

    async def _watched(self, coroutine: Coroutine[Any, Any, Told]) -> Told:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.ensure_future(coroutine)
        self._began.set()
        return await self._task
