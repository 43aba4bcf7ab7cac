"""Waits for the calls of an `async` reward, all at once, each with the same time limit."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

GRACE = 1.0
"""Seconds beyond its limit after which a call that blocks the others is abandoned."""
Start = Callable[[], Any]
"""Begins a call, and returns its awaitable or its value."""


class AsyncCalls:
    """The calls of a batch and their outcomes: each what the call returned, or what it raised."""

    def __init__(
        self, starts: Sequence[Start], seconds: float | None, late: Exception, warn: Callable[[str], None]
    ) -> None:
        """Take the calls; each has so many seconds and is else `late`, None sets no limit."""
        self._starts = starts
        self._limit = seconds
        self._late = late
        self._warn = warn
        self._outcomes: dict[int, Any] = {}
        self._began = self._stirred = time.perf_counter()
        self.seconds = 0.0

    async def run(self) -> None:
        """Make all calls."""
        self._began = self._stirred = time.perf_counter()
        pulse = None if self._limit is None else asyncio.create_task(self._pulse(min(self._limit / 4, 0.25)))
        await asyncio.gather(*(self._call(n, start) for n, start in enumerate(self._starts)))
        if pulse is not None:
            pulse.cancel()
        self.seconds = time.perf_counter() - self._began

    def stuck(self) -> bool:
        """Whether a call has held up all others for longer than its limit: it does not await, and runs on."""
        return self._limit is not None and time.perf_counter() - self._stirred > self._limit + GRACE

    def outcomes(self) -> list[Any]:
        """What each call returned or raised; calls that are still running are late."""
        if len(self._outcomes) < len(self._starts) and self.stuck():
            self._warn("it goes on running in the background")
            self.seconds = time.perf_counter() - self._began
        # One that is not stuck and has no outcome was in a loop that somebody stopped.
        missing = self._late if self.stuck() else RuntimeError("it stopped its event loop")
        return [self._outcomes.get(n, missing) for n in range(len(self._starts))]

    async def _call(self, number: int, start: Start) -> None:
        began = self._stirred = time.perf_counter()
        task = asyncio.create_task(_outcome(start))
        # Not asyncio.wait_for: it waits for a call that does not end when it is cancelled.
        await asyncio.wait({task}, timeout=self._limit)
        if not task.done():
            task.cancel()
        if self._limit is not None and (not task.done() or time.perf_counter() - began > self._limit):
            self._outcomes[number] = self._late
        else:
            self._outcomes[number] = task.result()
        self._stirred = time.perf_counter()

    async def _pulse(self, pause: float) -> None:
        while True:
            self._stirred = time.perf_counter()
            await asyncio.sleep(pause)


def has_awaitables(value: Any) -> bool:
    """Whether a value is, or is a list of, what has to be awaited; futures of a pool of threads or processes too."""
    return _awaitable(value) or (isinstance(value, list | tuple) and any(map(_awaitable, value)))


def _awaitable(value: Any) -> bool:
    return inspect.isawaitable(value) or isinstance(value, concurrent.futures.Future)


async def _outcome(start: Start) -> Any:
    """What a call returns or raises, as a value: an exit within a task would end the loop and not the call."""
    try:
        value = start()
        while _awaitable(value):
            value = await (asyncio.wrap_future(value) if isinstance(value, concurrent.futures.Future) else value)
        if has_awaitables(value):
            value = await asyncio.gather(*(_outcome(lambda part=part: part) for part in value))  # type: ignore[misc]
        return value
    except KeyboardInterrupt:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return error
    except BaseException as error:
        return error
