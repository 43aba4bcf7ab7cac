"""Values that change over training: functions of the remaining progress, 1 at the start and 0 at the end, as SB3's."""

import functools
import math
from collections.abc import Callable

from rlgkd.errors import SettingError
from rlgkd.ops._names import check_name

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


def _at(shape: str, start: float, end: float, remaining: float) -> float:
    if shape == "exponential":
        return float(start**remaining * end ** (1 - remaining))
    weight = remaining if shape == "linear" else (1 - math.cos(math.pi * remaining)) / 2
    return end + (start - end) * weight
