"""Whether the reward on held-out prompts is far below that of the texts which training just sampled.

Both are of the student's own samples at one temperature, so they differ by the prompts alone, and by what was learned
of those that were trained on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from rlgkd.agents.guards import Watch
from rlgkd.statistics import Interval
from rlgkd.types import ON_POLICY, Trajectory

RECENT: Final = 512
"""Texts of the newest updates that are compared, at most."""
ENOUGH: Final = 64
"""And at least."""
FAR_BELOW: Final = 0.2
"""Share of the training's reward by which the held-out one is below it, and their intervals apart."""


class RecentRewards:
    """The rewards of the student's newest texts."""

    def __init__(self) -> None:
        self._rewards: deque[float] = deque(maxlen=RECENT)

    def add(self, trajectories: Iterable[Trajectory]) -> None:
        """Take the texts of an update; those that the student did not write, or whose reward failed, do not count."""
        self._rewards.extend(
            t.score.reward for t in trajectories if t.source in ON_POLICY and math.isfinite(t.score.reward)
        )

    @property
    def interval(self) -> Interval:
        """Their mean with its 95% interval; NaN of too few."""
        count = len(self._rewards)
        if count < ENOUGH:
            return Interval()
        mean = math.fsum(self._rewards) / count
        variance = math.fsum((reward - mean) ** 2 for reward in self._rewards) / (count - 1)
        half = 1.96 * math.sqrt(variance / count)
        return Interval(mean, mean - half, mean + half)


def falls_short(training: Interval, held_out: Interval) -> bool:
    """Whether the held-out reward is far below the training's; false where one is not known.

    Examples:
        >>> falls_short(Interval(0.9, 0.88, 0.92), Interval(0.6, 0.5, 0.7))
        True
        >>> falls_short(Interval(0.9, 0.88, 0.92), Interval(0.8, 0.7, 0.9))
        False
    """
    scale = max(abs(training.mean), abs(held_out.mean))
    return training.mean - held_out.mean > FAR_BELOW * scale and training.low > held_out.high


def warn(watch: Watch, training: Interval, held_out: Interval, prompts: str) -> None:
    """Say once that the reward on `prompts`, such as "64 validation prompts", falls short, if it does."""
    if falls_short(training, held_out):
        watch.warn_once(
            "held_out",
            f"held-out: the reward is {held_out.mean:.3g} ({held_out.low:.3g} to {held_out.high:.3g}) on {prompts} and "
            f"{training.mean:.3g} on those it trains on, which it learns by heart; give more prompts or fewer tokens, "
            "raise alpha, or keep the best model (keep_best)",
        )
