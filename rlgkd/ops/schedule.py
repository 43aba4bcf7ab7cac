"""Values that change over training: functions of the remaining progress, 1 at the start and 0 at the end, as SB3's."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rlgkd.errors import SettingError
from rlgkd.ops._registry import check_name

Shape = Literal["linear", "cosine", "exponential"]


@dataclass(frozen=True)
class Schedule:
    """A value that goes from `start` to `end`; constant without an end.

    Args:
        start: The value at remaining progress 1.
        end: The value at 0; None keeps the start.
        shape: `linear`; `cosine`, slow at both ends; `exponential`, by equal factors.

    Raises:
        SettingError: an unknown shape, or an exponential that touches 0.

    Examples:
        >>> [round(Schedule(0.8, 0.2, shape)(0.25), 3) for shape in get_args(Shape)]
        [0.35, 0.288, 0.283]
    """

    start: float
    end: float | None = None
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        """Refuse what no value could be computed from."""
        check_name("shape", self.shape, get_args(Shape))
        if self.shape == "exponential" and self.end is not None and not (self.start > 0 and self.end > 0):
            ends = (self.start, self.end)
            raise SettingError("end", ends, "an exponential needs both ends above 0; use linear or cosine")

    def __call__(self, remaining: float) -> float:
        """The value at this remaining progress, in [0, 1]."""
        if self.end is None:
            return self.start
        if self.shape == "exponential":
            return float(self.start**remaining * self.end ** (1 - remaining))
        weight = remaining if self.shape == "linear" else (1 - math.cos(math.pi * remaining)) / 2
        return self.end + (self.start - self.end) * weight


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

    Examples:
        >>> round(steered(0.5, divergence=0.3, target=0.2, rate=0.1), 4)
        0.5125
    """
    relative_error = max(-1.0, min(1.0, divergence / target - 1.0))
    odds = alpha / (1.0 - alpha) * math.exp(rate * relative_error)
    return min(1.0 - 1e-4, max(1e-4, odds / (1.0 + odds)))
