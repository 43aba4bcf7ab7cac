"""Scores of finished episodes, at once or in the background; an episode that was cut at its limit is not scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Complex, Real
from typing import Any, NamedTuple

import numpy as np

from rlgkd.errors import one_line
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


def as_float(value: Any) -> float:
    """Return a number of any library: a bool, a Decimal, a Fraction, an array or tensor of one element.

    Raises: TypeError for what is no number, such as None or a text; ValueError for one that no float can hold.
    """
    if type(value) is float:
        return value
    number = value
    if not isinstance(value, Real) and callable(getattr(value, "item", None)):
        try:
            number = value.item()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"it returned {_shown(value)}, which is not one number") from error
    odd = number is None or isinstance(number, str | bytes | bytearray)  # float("nan") and float("1") work
    if odd or (isinstance(number, Complex) and not isinstance(number, Real)):
        raise TypeError(f"it returned {_shown(value)}, which is no number")
    if value is np.ma.masked:  # its float is 0
        raise ValueError("it returned a masked value, which is missing")
    try:
        return float(number)
    except TypeError as error:
        raise TypeError(f"it returned {_shown(value)}, which is no number") from error
    except OverflowError as error:
        raise ValueError("it returned a number that is too large for a float") from error
    except Exception as error:  # of a type of the user's own
        raise ValueError(f"it returned {_shown(value)}, whose number cannot be had: {error!r:.60}") from error


def with_floats(score: Score) -> Score:
    """Return a score whose reward, parts and steps are floats; a reward of None is NaN.

    Raises: TypeError or ValueError, as `as_float`.
    """
    reward: Any = score.reward
    parts: Any = score.parts
    if not isinstance(parts, Mapping) or not all(isinstance(name, str) for name in parts):
        raise TypeError(f"its parts are {_shown(parts)}; give a mapping of names to numbers")
    numbers = [reward, *score.parts.values(), *(() if score.steps is None else score.steps)]
    if all(type(number) is float for number in numbers):
        return score
    return replace(
        score,
        reward=math.nan if reward is None else as_float(reward),
        parts={name: as_float(part) for name, part in score.parts.items()},
        steps=None if score.steps is None else tuple(map(as_float, score.steps)),
    )


def _shown(value: object) -> str:
    if type(value).__repr__ is object.__repr__:  # an address in memory says nothing
        return f"a {type(value).__name__}"
    return one_line(f"{value!r:.200}", 60)


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
    scores = map(_checked, given)
    return [cut if one.stop is StopReason.TRUNCATED else next(scores) for one in ended]


def _checked(score: Score) -> Score:
    """The score in floats, NaN if it cannot be; a task of one's own may give any."""
    try:
        return with_floats(score)
    except (TypeError, ValueError) as error:
        return Score(reward=math.nan, failure=one_line(f"{type(error).__name__}: {error}"))
