"""How a reward is called: arguments by name, single or batched, sync or async, and what happens when it fails.

A failure costs its sample and nothing else: the sample's reward is NaN, which takes it out of the update, and it is
counted. It is never scored as a number. Where too many fail, the run stops with the first failure as the cause.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from rlgkd.envs.rewards.background import BackgroundTask
from rlgkd.envs.rewards.user_errors import describe_failure
from rlgkd.errors import RewardError, SettingError
from rlgkd.types import Item, Score

Reward = Callable[..., Any]
"""A function of any of `prompts`, `completions`, `references`, `items` and the data's columns, each a list over the
batch, that returns a number or a Score for each (or a list of numbers: of each action, which `tokens` shows as text);
or of `prompt`, `completion`, `reference`, `item` (and columns), that returns one. It may be `async`. Where a sample
failed alone, the exception that says why stands in its place."""

_log = logging.getLogger(__name__)
SINGULAR = {"prompt": "prompts", "completion": "completions", "reference": "references", "item": "items"}
FEWEST = 200
"""Samples before a share of failures is one."""
HOPELESS = 50
"""Samples all of which have failed, so that no more are waited for."""
LONGEST = 200
"""Characters that are kept of a failure's reason."""


class Grader:
    """A reward that fails without harm; it counts its samples, failures and seconds."""

    def __init__(self, reward: Reward, *, timeout: float | None = None, max_failed: float = 0.1) -> None:
        """Wrap a reward.

        Args:
            reward: See `Reward`.
            timeout: Seconds for a batch (or for a sample, of a reward of single ones); None waits for ever.
            max_failed: Share of samples that may fail, in [0, 1], taken over 200 samples or more. The one batch with
                the most failures does not count where there are others, so that a moment's fault stops nothing. Where
                not one sample was scored, 50 are enough.

        Raises: SettingError.
        """
        if not callable(reward):
            raise SettingError("reward", reward, "give a function")
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise SettingError("reward_timeout", timeout, "give seconds above 0, or None")
        if not 0 <= max_failed <= 1:
            raise SettingError("max_failed_rewards", max_failed, "give a share in [0, 1]")
        self.reward, self.timeout, self.max_failed = reward, timeout, max_failed
        self.scored = self.failed = 0
        self._worst = (0, 0)
        """Failed and all samples of the batch with the most failures."""
        self.seconds = 0.0
        self._first: Exception | None = None
        self._why = ""

    def asks_for(self, name: str) -> bool:
        """Whether the reward has an argument of that name, or is made of rewards one of which has."""
        of_parts = getattr(self.reward, "asks_for", None)
        if of_parts is not None:
            return bool(of_parts(name))
        parameters = inspect.signature(self.reward).parameters
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def __call__(self, items: Sequence[Item], completions: Sequence[str], **more: Sequence[Any]) -> list[Score]:
        """One Score for each completion; NaN where the reward failed. `more` are further arguments it may ask for.

        Raises: SettingError for an argument that there is not; RewardError where too many have failed.
        """
        if not completions:
            return []
        if self.is_async:
            return self.submit(items, completions, **more).result()
        began = time.perf_counter()
        calls, size = self._calls(items, completions, more)
        values = [self._called(arguments, size) for arguments in calls]
        return self._counted(values, time.perf_counter() - began, more)

    @property
    def is_async(self) -> bool:
        """Whether the reward is async: it waits, for a server say, and leaves the processor to others meanwhile."""
        return any(map(inspect.iscoroutinefunction, (self.reward, type(self.reward).__call__)))

    def submit(
        self, items: Sequence[Item], completions: Sequence[str], **more: Sequence[Any]
    ) -> BackgroundTask[Any, list[Score]]:
        """As a call, of a reward that waits, for one completion or more: its result is that of the call.

        The reward alone runs in another thread; samples, failures and seconds are counted when the result is taken.
        """
        calls, size = self._calls(items, completions, more)
        return BackgroundTask(self._gathered(calls, size), lambda told: self._counted(*told, more))

    def _counted(
        self, values: Sequence[Sequence[Score | Exception]], seconds: float, more: Mapping[str, Sequence[Any]]
    ) -> list[Score]:
        """The Scores of what all calls returned."""
        scores = [self._score(value) for some in values for value in some]
        for row, score in enumerate(scores):
            actions = len(more["tokens"][row]) if "tokens" in more else -1
            if score.steps is not None and len(score.steps) != actions:
                told = f"it returned {len(score.steps)} steps for {actions} tokens"
                error = ValueError(
                    told if actions >= 0 else "it returned steps, and must ask for `tokens` to count them"
                )
                scores[row] = self._score(error)
        self.seconds += seconds
        failures = [score.failure for score in scores if math.isnan(score.reward)]
        self.scored, self.failed = self.scored + len(scores), self.failed + len(failures)
        self._why = self._why or next(iter(failures), "")
        self._worst = max(self._worst, (len(failures), len(scores)))
        if self._too_many(alone=self.scored == len(scores)):
            why = self._why if self._first is None else describe_failure(self._first, self.reward)
            raise RewardError(
                "reward", f"{self.failed} of {self.scored} samples failed",
                f"mend it, or raise the environment's max_failed_rewards; the first failure: {why}",
            ) from self._first  # fmt: skip
        return scores

    def _too_many(self, *, alone: bool) -> bool:
        """Whether more than the share have failed, by the rule of `max_failed`; `alone`: there was one batch so far."""
        if self.failed == self.scored >= HOPELESS:
            return self.max_failed < 1
        (failed, scored) = (0, 0) if alone else self._worst
        counted = self.scored - scored
        return counted >= FEWEST and self.failed - failed > self.max_failed * counted

    def _calls(
        self, items: Sequence[Item], completions: Sequence[str], more: Mapping[str, Sequence[Any]]
    ) -> tuple[list[dict[str, Any]], int]:
        """The arguments of each call, and how many values each returns."""
        arguments, single = self._arguments(items, completions, more)
        if not single:
            return [arguments], len(completions)
        return [{name: values[row] for name, values in arguments.items()} for row in range(len(completions))], 1

    def _arguments(
        self, items: Sequence[Item], completions: Sequence[str], more: Mapping[str, Sequence[Any]]
    ) -> tuple[dict[str, list[Any]], bool]:
        """What the reward asks for by name, as lists over the batch, and whether it asks for single samples.

        A reward that takes **kwargs gets all there is; defaults stand in for what there is not.
        """
        available: dict[str, list[Any]] = {
            **{
                name: [item.columns[name] for item in items]
                for name in items[0].columns
                if all(name in item.columns for item in items)
            },
            "prompts": [item.prompt for item in items], "completions": list(completions),
            "references": [item.reference for item in items], "items": list(items),
            **{name: list(values) for name, values in more.items()},
        }  # fmt: skip
        parameters = inspect.signature(self.reward).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        single = any(p.name in SINGULAR and p.name not in available for p in named)
        if single:
            available |= {one: available.pop(many) for one, many in SINGULAR.items()}
        for parameter in named:
            if parameter.default is parameter.empty and parameter.name not in available:
                there = ", ".join(sorted(available))
                raise SettingError("reward", parameter.name, f"name its arguments after what there is: {there}")
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return available, single
        return {p.name: available[p.name] for p in named if p.name in available}, single

    def _called(self, arguments: Mapping[str, Any], size: int) -> list[Score | Exception]:
        """What a call returned, `size` values; one that fails costs all of them."""
        try:
            with _alarm(self.timeout):
                return _values(_whole(arguments, self.reward(**arguments)), size)
        except Exception as error:
            return [error] * size

    async def _gathered(
        self, calls: Sequence[Mapping[str, Any]], size: int
    ) -> tuple[list[list[Score | Exception]], float]:
        """What all calls returned, made at once, and the seconds that it took."""

        async def called(arguments: Mapping[str, Any]) -> list[Score | Exception]:
            try:
                awaited: Awaitable[Any] = self.reward(**arguments)
                return _values(_whole(arguments, await asyncio.wait_for(awaited, self.timeout)), size)
            except Exception as error:
                return [error] * size

        began = time.perf_counter()
        return list(await asyncio.gather(*map(called, calls))), time.perf_counter() - began

    def _score(self, value: Score | Exception) -> Score:
        if isinstance(value, Score):
            return replace(value, failure=value.failure or "it returned NaN") if math.isnan(value.reward) else value
        if self._first is None:
            _log.warning("the reward failed, and its samples are left out: %s", describe_failure(value, self.reward))
            self._first = value
        return Score(reward=math.nan, failure=" ".join(f"{type(value).__name__}: {value}".split())[:LONGEST])


def takes(*names: str) -> inspect.Signature:
    """The `__signature__` of a reward that learns from its settings what to ask for.

    Raises: SettingError for what no argument can be called, or a name given twice.
    """
    try:
        return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    except ValueError as error:
        raise SettingError("columns", names, f"name each column of the data once ({error})") from error


def _whole(arguments: Mapping[str, Any], returned: Any) -> Any:
    """What a reward of single samples returned, as of a batch of one, where a list is the steps of that one."""
    return [returned] if "tokens" in arguments and SINGULAR.keys() & arguments.keys() else returned


def _values(returned: Any, size: int) -> list[Score | Exception]:
    """Make `size` Scores of what a reward returned, but for the exceptions in it.

    Raises: TypeError or ValueError if that is not one number for each.
    """
    if size == 1 and isinstance(returned, Real | Score | Exception):
        returned = [returned]
    if isinstance(returned, str | bytes | Mapping):
        raise TypeError(f"return numbers or Scores, not {type(returned).__name__}")
    values = list(map(_checked, returned))
    if len(values) != size:
        raise ValueError(f"it returned {len(values)} values for {size} completions")
    return values


def _checked(value: Any) -> Score | Exception:
    """The Score of one sample, or why it has none: it fails alone."""
    if isinstance(value, Exception):
        return value
    try:
        score = value if isinstance(value, Score) else _plain(value)
    except (TypeError, ValueError) as error:
        return error
    if math.isinf(score.reward):
        return ValueError("it returned an infinite reward")
    told = None if score.steps is None or math.isnan(score.reward) else sum(score.steps)
    if told is not None and not math.isclose(told, score.reward, rel_tol=1e-4, abs_tol=1e-6):
        return ValueError(f"its steps sum to {told}, and its reward is {score.reward}")
    return score


def _plain(value: Any) -> Score:
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):  # of each action
        steps = tuple(map(_number, value))
        return Score(reward=sum(steps), steps=steps)
    return Score(reward=_number(value))


def _number(value: Any) -> float:
    if value is None or isinstance(value, str | bytes):  # float("nan") and float("1") are no rewards
        raise TypeError(f"it returned {value!r} as a reward")
    return float(value)


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in the body after so many seconds.

    By a signal, so that nothing goes on in the background: it works in the main thread and for whatever returns to
    Python now and then. Elsewhere there is no timeout; an `async` reward has its own.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"the reward took longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
