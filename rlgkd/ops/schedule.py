"""Values that change over training: functions of the remaining progress, 1 at the start and 0 at the end, as SB3's."""

import functools
import math
from collections.abc import Callable

from rlgkd.errors import SettingError
from rlgkd.ops._registry import check_name

Schedule = Callable[[float], float]
SHAPES = ("linear", "cosine", "exponential")


def between(shape: str, start: float, end: float) -> Schedule:
    """Return the schedule that runs from `start` to `end` in this shape.

    Args:
        shape: `linear`; `cosine`, slow at both ends; `exponential`, by equal factors.
        start: the value at remaining progress 1.
        end: the value at 0.

    Returns:
        A function of the remaining progress in [0, 1]; it can be pickled.

    Raises:
        SettingError: an unknown shape, or an exponential that touches 0.

    Example:
        >>> [round(between(shape, 0.8, 0.2)(0.25), 3) for shape in SHAPES]
        [0.35, 0.288, 0.283]
    """
    check_name("shape", shape, SHAPES)
    if shape == "exponential" and not (start > 0 and end > 0):
        raise SettingError("end", (start, end), "an exponential needs both ends above 0; use linear or cosine")
    return functools.partial(_at, shape, start, end)


def steered(alpha: float, divergence: float, target: float, rate: float) -> float:
    """Return alpha, moved so that the divergence comes to its target: dual ascent on log(alpha / (1 - alpha)).

    The Lagrange multiplier of the constraint D <= target is alpha / (1 - alpha); its logarithm rises by `rate` times
    the relative excess D / target - 1, held within -1 and 1.

    Args:
        alpha: in (0, 1).
        divergence: the batch's, in nats.
        target: what it shall be, above 0, in nats.
        rate: above 0.

    Returns:
        In (0, 1), held within 1e-4 of its ends, from which there would be no way back.

    Source: Ziegler et al. 2019, arXiv 1909.08593 (their proportional controller, here on the odds).

    Example:
        >>> round(steered(0.5, divergence=0.3, target=0.2, rate=0.1), 4)
        0.5125
    """
    excess = max(-1.0, min(1.0, divergence / target - 1.0))
    odds = alpha / (1.0 - alpha) * math.exp(rate * excess)
    return min(1.0 - 1e-4, max(1e-4, odds / (1.0 + odds)))


def _at(shape: str, start: float, end: float, remaining: float) -> float:
    if shape == "exponential":
        return float(start**remaining * end ** (1 - remaining))
    weight = remaining if shape == "linear" else (1 - math.cos(math.pi * remaining)) / 2
    return end + (start - end) * weight
