"""Scores of finished episodes, at once or in the background; an episode that was cut at its limit is not scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rlgkd.types import AsyncTask, Item, PendingScores, Score, StopReason, Task


class Ended(NamedTuple):
    """What a task is given of a finished episode to score it."""

    item: Item
    text: str
    turns: Sequence[str]
    ids: Sequence[int]
    """The actions, over all turns."""
    stop: StopReason


def score(task: Task, ended: Sequence[Ended]) -> list[Score]:
    """The scores in one call of the reward; NaN for an episode that was cut."""
    scorable = _scorable(ended)
    given = task.score(*_texts(scorable), turns=_turns(scorable), ids=_ids(scorable)) if scorable else []
    return _with_cut_ones(ended, given)


class Submission:
    """A batch whose scores an asynchronous reward is working on."""

    def __init__(self, task: AsyncTask, ended: Sequence[Ended]) -> None:
        """Submit the batch. Only one batch of a task may be pending."""
        scorable = _scorable(ended)
        self._ended = ended
        self._pending: PendingScores | None = None
        if scorable:
            self._pending = task.submit(*_texts(scorable), turns=_turns(scorable), ids=_ids(scorable))

    def done(self) -> bool:
        """Whether the scores are there."""
        return self._pending is None or self._pending.done()

    def result(self) -> list[Score]:
        """Wait for the scores.

        Raises: what the reward raises.
        """
        return _with_cut_ones(self._ended, [] if self._pending is None else self._pending.result())

    def cancel(self) -> None:
        """Abandon the scores."""
        if self._pending is not None:
            self._pending.cancel()


def is_async(task: Task) -> bool:
    """Whether the task's reward waits for others, such as a server, and can be left to it."""
    return isinstance(task, AsyncTask) and task.is_async


def _scorable(ended: Sequence[Ended]) -> list[Ended]:
    return [one for one in ended if one.stop is not StopReason.TRUNCATED]


def _texts(ended: Sequence[Ended]) -> tuple[list[Item], list[str]]:
    return [one.item for one in ended], [one.text for one in ended]


def _turns(ended: Sequence[Ended]) -> list[Sequence[str]]:
    return [one.turns for one in ended]


def _ids(ended: Sequence[Ended]) -> list[Sequence[int]]:
    return [one.ids for one in ended]


def _with_cut_ones(ended: Sequence[Ended], given: Sequence[Score]) -> list[Score]:
    """A score for every episode, in order."""
    cut = Score(reward=math.nan)
    scores = iter(given)
    return [cut if one.stop is StopReason.TRUNCATED else next(scores) for one in ended]
