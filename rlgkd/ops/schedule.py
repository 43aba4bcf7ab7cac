"""Schedules: values as functions of the remaining progress, which falls from 1 to 0 as in Stable-Baselines3."""

import functools
import math
from collections.abc import Callable

from rlgkd.errors import SettingError
from rlgkd.ops._registry import check_name

Schedule = Callable[[float], float]
SHAPES = ("linear", "cosine", "exponential")


def between(shape: str, start: float, end: float) -> Schedule:
    """Return the schedule from `start` to `end` with this shape.

    Args:
        shape: `linear`; `cosine`, slow at both ends; `exponential`, by equal factors.
        start: The value at remaining progress 1.
        end: The value at remaining progress 0.

    Returns:
        A function of the remaining progress in [0, 1]; it can be pickled.

    Raises:
        SettingError: an unknown shape, or an exponential with an end that is not above 0.

    Example:
        >>> [round(between(shape, 0.8, 0.2)(0.25), 3) for shape in SHAPES]
        [0.35, 0.288, 0.283]
    """
    check_name("shape", shape, SHAPES)
    if shape == "exponential" and not (start > 0 and end > 0):
        raise SettingError("end", (start, end), "an exponential needs both ends above 0; use linear or cosine")
    return functools.partial(_value_at, shape, start, end)


def steered(alpha: float, divergence: float, target: float, rate: float) -> float:
    """Return alpha after one step of dual ascent on log(alpha / (1 - alpha)) towards the divergence's target.

    The Lagrange multiplier of the constraint D <= target is alpha / (1 - alpha); its logarithm rises by `rate` times
    the relative error D / target - 1, clipped to [-1, 1].

    Args:
        alpha: The current value, in (0, 1).
        divergence: The batch's divergence, in nats.
        target: The largest divergence wanted, in nats, above 0.
        rate: The step size, above 0.

    Returns:
        A value in [1e-4, 1 - 1e-4]: at 0 or 1 the odds could not change any more.

    Source: Ziegler et al. 2019, arXiv 1909.08593 (a proportional controller, here on the odds).

    Example:
        >>> round(steered(0.5, divergence=0.3, target=0.2, rate=0.1), 4)
        0.5125
    """
    relative_error = max(-1.0, min(1.0, divergence / target - 1.0))
    odds = alpha / (1.0 - alpha) * math.exp(rate * relative_error)
    return min(1.0 - 1e-4, max(1e-4, odds / (1.0 + odds)))


def _value_at(shape: str, start: float, end: float, remaining: float) -> float:
    if shape == "exponential":
        return float(start**remaining * end ** (1 - remaining))
    weight = remaining if shape == "linear" else (1 - math.cos(math.pi * remaining)) / 2
    return end + (start - end) * weight
