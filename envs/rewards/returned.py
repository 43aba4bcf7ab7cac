"""Turns what a reward returned into one Score for each sample, or into the exception that says why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from rlgkd.types import Score


def scores_or_errors(returned: Any, size: int) -> list[Score | Exception]:
    """Return `size` Scores; a sample whose value is no reward has the exception that says so in its place.

    Raises: TypeError or ValueError if there is not one value for each sample, so that all of them have failed.
    """
    if size == 1 and isinstance(returned, Real | Score | Exception):
        returned = [returned]
    if isinstance(returned, str | bytes | Mapping):
        raise TypeError(f"return numbers or Scores, not {type(returned).__name__}")
    values = [_score_or_error(value) for value in returned]
    if len(values) != size:
        raise ValueError(f"it returned {len(values)} values for {size} completions")
    return values


def steps_error(score: Score, actions: int | None) -> ValueError | None:
    """Return why the steps of a score do not fit its number of actions (None: not known); None if they do."""
    if score.steps is None or len(score.steps) == actions:
        return None
    if actions is None:
        return ValueError("it returned steps, and must ask for `tokens` to count them")
    return ValueError(f"it returned {len(score.steps)} steps for {actions} tokens")


def _score_or_error(value: Any) -> Score | Exception:
    if isinstance(value, Exception):
        return value
    try:
        score = value if isinstance(value, Score) else _as_score(value)
    except (TypeError, ValueError) as error:
        return error
    if math.isinf(score.reward):
        return ValueError("it returned an infinite reward")
    if score.steps is not None and not math.isnan(score.reward):
        total = sum(score.steps)
        if not math.isclose(total, score.reward, rel_tol=1e-4, abs_tol=1e-6):
            return ValueError(f"its steps sum to {total}, and its reward is {score.reward}")
    return score


def _as_score(value: Any) -> Score:
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):  # one number for each action
        steps = tuple(_as_number(step) for step in value)
        return Score(reward=sum(steps), steps=steps)
    return Score(reward=_as_number(value))


def _as_number(value: Any) -> float:
    if value is None or isinstance(value, str | bytes):  # float("nan") and float("1") work, and are no rewards
        raise TypeError(f"it returned {value!r} as a reward")
    return float(value)
