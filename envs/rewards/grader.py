"""Calls a reward, and keeps its failures from doing harm.

A failure costs its sample and nothing else: the sample's reward is NaN, which takes it out of the policy term (its
divergence still counts), and it is counted. It is never scored as a number. If too many samples fail, the run stops,
with the first failure as the cause.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

from rlgkd.background import BackgroundTask
from rlgkd.envs.rewards.arguments import Reward, RewardCall, asks_for, reward_calls
from rlgkd.envs.rewards.async_calls import AsyncCalls, Start, has_awaitables
from rlgkd.envs.rewards.returned import ABSTAINED, Abstained, scores_or_errors, steps_error
from rlgkd.envs.rewards.user_errors import describe_failure, message_of
from rlgkd.errors import RewardError, SettingError, one_line
from rlgkd.failures import FailureCount
from rlgkd.global_state import restored_state
from rlgkd.time_limit import call_within, late
from rlgkd.types import Item, Score

_log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_REASON = 200
"""Characters of a failure's reason that are kept."""
Results = list[Score | BaseException]
"""One for each sample: its score, or why it has none."""


class Grader:
    """A reward whose failures become NaN; it counts its samples, failures and seconds."""

    def __init__(
        self,
        reward: Reward,
        *,
        timeout: float | None = None,
        max_failed: float = 0.1,
        may_abstain: bool = False,
        parts_of_turns: Callable[[Sequence[str]], Mapping[str, float]] | None = None,
    ) -> None:
        """Wrap a reward.

        Args:
            reward: See `Reward`.
            timeout: Seconds for a call: of a batch, or of one sample if the reward takes single samples. None sets no
                limit.
            max_failed: Share of the samples that may fail, in [0, 1], counted over 200 samples or more. The one batch
                with the most failures is left out of the count if there are others. A reward that has failed for all
                of 50 samples stops the run earlier.
            parts_of_turns: What is added to the parts of each score: a function of the episode's turns.
            may_abstain: Whether a reward of None is expected, and not reported as a failure.

        Raises: SettingError.
        """
        if not callable(reward):
            raise SettingError("reward", reward, "give a function")
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise SettingError("reward_timeout", timeout, "give seconds above 0, or None")
        if not 0 <= max_failed <= 1:
            raise SettingError("max_failed_rewards", max_failed, "give a share in [0, 1]")
        self.reward = reward
        self.timeout = timeout
        self.max_failed = max_failed
        self._parts_of_turns = parts_of_turns
        self._may_abstain = may_abstain
        self.seconds = 0.0
        self.abstained = 0
        """Samples for which the reward gave None; they have failed too."""
        self._count = FailureCount()
        self._first_error: BaseException | None = None
        self._first_reason = ""
        self._warned_of_no_limit = False

    @property
    def scored(self) -> int:
        """Samples so far, the failed ones included."""
        return self._count.scored

    @property
    def failed(self) -> int:
        """Samples so far whose reward failed."""
        return self._count.failed

    @property
    def is_async(self) -> bool:
        """Whether the reward is `async`: it waits, for a server say, while other work goes on."""
        reward = self.reward
        while isinstance(reward, functools.partial):
            reward = reward.func
        return any(map(inspect.iscoroutinefunction, (reward, type(reward).__call__)))

    def asks_for(self, name: str) -> bool:
        """Whether the reward, or one that it is made of, has an argument of that name."""
        return asks_for(self.reward, name)

    def __call__(self, items: Sequence[Item], completions: Sequence[str], **extra: Sequence[Any]) -> list[Score]:
        """Score a batch: one Score for each completion, NaN where the reward failed.

        `extra` are further arguments that the reward may ask for, each a list over the batch.

        Raises: SettingError for an argument that does not exist; RewardError if too many samples have failed.
        """
        if not completions:
            return []
        if self.is_async:
            return self.submit(items, completions, **extra).result()
        began = time.perf_counter()
        calls = reward_calls(self.reward, items, completions, extra)
        with restored_state():
            returned = list(map(self._call, calls))
        waiting = [n for n, value in enumerate(returned) if has_awaitables(value)]
        if waiting:  # the reward is not declared `async`, and what it returned has to be awaited
            starts: list[Start] = [partial(_same, returned[n]) for n in waiting]
            awaited = self._in_background(starts, AsyncCalls.outcomes).result()
            for n, value in zip(waiting, awaited, strict=True):
                returned[n] = value
        results = list(chain.from_iterable(map(_results, calls, returned)))
        return self._record(results, time.perf_counter() - began, extra)

    def submit(
        self, items: Sequence[Item], completions: Sequence[str], **extra: Sequence[Any]
    ) -> BackgroundTask[list[Score]]:
        """Start to score a batch, not empty, with an `async` reward.

        Only the reward runs in the other thread: samples, failures and seconds are counted when the result is taken.
        """
        calls = reward_calls(self.reward, items, completions, extra)

        def finish(made: AsyncCalls) -> list[Score]:
            results = list(chain.from_iterable(map(_results, calls, made.outcomes())))
            return self._record(results, made.seconds, extra)

        return self._in_background([partial(self.reward, **call.arguments) for call in calls], finish)

    def _in_background(self, starts: Sequence[Start], finish: Callable[[AsyncCalls], T]) -> BackgroundTask[T]:
        """Make all calls at once in another thread; `finish` makes the result of them."""
        calls = AsyncCalls(starts, self.timeout, late(self.timeout or 0.0), self._warn_of_no_limit)

        async def run() -> None:
            with restored_state():
                await calls.run()

        return BackgroundTask(run(), lambda: finish(calls), stuck=None if self.timeout is None else calls.stuck)

    def _call(self, call: RewardCall) -> Any:
        """What a call returned, or what it raised; Ctrl-C alone is passed on."""
        try:
            return call_within(
                self.timeout, lambda: _listed(self.reward(**call.arguments)), warn=self._warn_of_no_limit
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and CancelledError too: a reward that exits has failed
            return error

    def _record(self, results: Results, seconds: float, extra: Mapping[str, Sequence[Any]]) -> list[Score]:
        """Return the Scores of a batch, and count it.

        Raises: RewardError if too many samples have failed.
        """
        scores = [result if isinstance(result, Score) else self._failed(result) for result in results]
        for row, score in enumerate(scores):
            error = steps_error(score, len(extra["tokens"][row]) if "tokens" in extra else None)
            if error is not None:
                scores[row] = self._failed(error)
        scores = [_with_reason(score) for score in scores]
        if self._parts_of_turns is not None:
            added = map(self._parts_of_turns, extra["turns"])
            scores = [
                replace(score, parts={**score.parts, **parts}) for score, parts in zip(scores, added, strict=True)
            ]
        reasons = [score.failure for score in scores if math.isnan(score.reward)]
        if reasons and not self._first_reason:
            self._first_reason = reasons[0]
        self.seconds += seconds
        self._count.add(len(reasons), len(scores))
        if self._count.too_many(self.max_failed):
            first = self._first_error
            reason = self._first_reason if first is None else describe_failure(first, self.reward)
            raise RewardError(
                "reward",
                f"{self.failed} of {self.scored} samples failed",
                f"fix it, or raise the environment's max_failed_rewards; the first failure: {reason}",
            ) from first
        return scores

    def _warn_of_no_limit(self, reason: str) -> None:
        if not self._warned_of_no_limit:
            self._warned_of_no_limit = True
            _log.warning("the reward took longer than reward_timeout, %s seconds: %s", self.timeout, reason)

    def _failed(self, error: BaseException) -> Score:
        """The Score of a sample that failed; the first failure is logged."""
        if isinstance(error, Abstained):
            self.abstained += 1
            if self._may_abstain:
                return Score(reward=math.nan, failure=ABSTAINED)
        if self._first_error is None:
            _log.warning("the reward failed, and its samples are left out: %s", describe_failure(error, self.reward))
            self._first_error = error
        return Score(reward=math.nan, failure=one_line(f"{type(error).__name__}: {message_of(error)}", MAX_REASON))


def _listed(returned: Any) -> Any:
    """The values of a generator, which are made within the time limit and may be awaitables."""
    return list(returned) if isinstance(returned, Iterator) else returned


def _same(value: T) -> T:
    return value


def _results(call: RewardCall, returned: Any) -> Results:
    """The results of a call; an exception that it raised is the result of all its samples."""
    if isinstance(returned, BaseException):
        return [returned] * call.size
    if call.single and "tokens" in call.arguments:  # a list is then the steps of the one sample
        returned = [returned]
    try:
        return scores_or_errors(returned, call.size, single=call.single)
    except Exception as error:
        return [error] * call.size


def _with_reason(score: Score) -> Score:
    if math.isnan(score.reward) and not score.failure:
        return replace(score, failure="it returned NaN")
    return score
