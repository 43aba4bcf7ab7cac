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

    Example:
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
