"""Turns what a reward returned into one Score for each sample, or into the exception that says why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor

from rlgkd.scoring import as_float, with_floats
from rlgkd.types import Score

LARGEST = 1e15
"""Size of a reward from which on it has failed: float32, in which models are trained, must hold sums of its square."""
ABSTAINED = "it abstained: it returned None"
"""The failure of a sample whose reward is None."""


class Abstained(ValueError):
    """Why a sample has no reward whose value is None: the reward does not apply to it."""

    def __init__(self) -> None:
        super().__init__(ABSTAINED)


def scores_or_errors(returned: Any, size: int, *, single: bool = False) -> list[Score | BaseException]:
    """Return `size` Scores; a sample whose value is no reward has the exception that says so in its place.

    Args:
        returned: What the reward returned.
        size: Samples that it was called for.
        single: Whether it takes single samples, so that no list is needed around its value.

    Raises: TypeError or ValueError if there is not one value for each sample, so that all of them have failed.
    """
    if size == 1 and (_is_one_value(returned) or (single and returned is None)):
        returned = [returned]
    wanted = "return a number" if single else "return a list with a number for each completion"
    if isinstance(returned, str | bytes | bytearray | Mapping | set | frozenset):  # a set has no order
        raise TypeError(f"it returned a {type(returned).__name__}; {wanted}, or a Score")
    try:
        values = list(returned)
    except TypeError as error:
        if hasattr(type(returned), "__iter__") and not hasattr(returned, "ndim"):  # raised on the way by a generator
            raise
        raise TypeError(f"it returned {returned!r:.60} for {size} completions; {wanted}, or a Score") from error
    if len(values) != size:
        raise ValueError(f"it returned {len(values)} values for {size} completions")
    return [_score_or_error(value) for value in values]


def measures_of(returned: Any, size: int) -> list[dict[str, float]]:
    """Return what measures of quality returned for `size` texts, as mappings of names to floats.

    Raises: TypeError or ValueError for anything but a mapping of numbers for each text.
    """
    rows = returned if isinstance(returned, list | tuple) else None
    if rows is None or not all(isinstance(row, Mapping) and all(isinstance(name, str) for name in row) for row in rows):
        raise TypeError("it returned no list of mappings")
    if len(rows) != size:
        raise ValueError(f"it returned {len(rows)} mappings for {size} texts")
    return [{name: as_float(value) for name, value in row.items()} for row in rows]


def steps_error(score: Score, actions: int | None) -> ValueError | None:
    """Return why the steps of a score do not fit its number of actions (None: not known); None if they do."""
    if score.steps is None or len(score.steps) == actions:
        return None
    if actions is None:
        return ValueError("it returned steps, and must ask for `tokens` to count them")
    return ValueError(f"it returned {len(score.steps)} steps for {actions} tokens")


def _is_one_value(value: Any) -> bool:
    """Whether this stands for one sample: numbers, which Decimal is too, and arrays without a dimension."""
    return isinstance(value, Number | Score | BaseException) or getattr(value, "ndim", None) == 0


def _score_or_error(value: Any) -> Score | BaseException:
    if isinstance(value, BaseException):
        return value
    if value is None or (isinstance(value, Score) and value.reward is None):
        return Abstained()
    try:
        score = with_floats(value) if isinstance(value, Score) else _as_score(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an object's own __float__ or __repr__ may raise anything
        return error
    if abs(score.reward) > LARGEST:
        kind = "an infinite reward" if math.isinf(score.reward) else f"a reward of {score.reward:g}"
        return ValueError(f"it returned {kind}; divide or clip it, to at most {LARGEST:g} in size")
    for name, part in score.parts.items():
        if abs(part) > LARGEST:
            return ValueError(f"its part {name} is {part:g}; divide or clip it, to at most {LARGEST:g} in size")
    if score.steps is not None and not math.isnan(score.reward):
        total = sum(score.steps)
        if not math.isclose(total, score.reward, rel_tol=1e-4, abs_tol=1e-6):
            return ValueError(f"its steps sum to {total}, and its reward is {score.reward}")
    return score


def _as_score(value: Any) -> Score:
    array = isinstance(value, np.ndarray | Tensor) and value.shape != () and math.prod(value.shape) != 1
    if array or (isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)):
        steps = tuple(as_float(step) for step in value)  # one number for each action
        return Score(reward=sum(steps), steps=steps)
    return Score(reward=as_float(value))
