"""Running mean and standard deviation of values that arrive in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunningMeanStd:
    """Count, mean and sum of squared deviations of all values so far.

    Named after Stable-Baselines3's class, but immutable: `updated` returns a new one.
    """

    count: int = 0
    mean: float = 0.0
    squared_deviations: float = 0.0

    def updated(self, values: Sequence[float], valid: Sequence[bool]) -> RunningMeanStd:
        """Return the statistics with the valid ones of these values included.

        Args:
            values: One batch; any value where invalid.
            valid: One flag for each value.

        Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for sample variances".

        Examples:
            >>> RunningMeanStd().updated([1.0, 2.0], [True, True]).updated([float("nan"), 6.0], [False, True])
            RunningMeanStd(count=3, mean=3.0, squared_deviations=14.0)
        """
        values = [value for value, is_valid in zip(values, valid, strict=True) if is_valid]
        if not values:
            return self
        batch_mean = math.fsum(values) / len(values)
        batch_squares = math.fsum((value - batch_mean) ** 2 for value in values)
        count = self.count + len(values)
        delta = batch_mean - self.mean
        return RunningMeanStd(
            count,
            self.mean + delta * len(values) / count,
            self.squared_deviations + batch_squares + delta**2 * self.count * len(values) / count,
        )

    @property
    def std(self) -> float:
        """Sample standard deviation; 1 as long as all values are equal."""
        return 1.0 if self.is_constant else self._std

    @property
    def is_constant(self) -> bool:
        """Whether all values so far are equal, up to rounding."""
        return self._std <= 1e-8 * max(1.0, abs(self.mean))

    @property
    def _std(self) -> float:
        return math.sqrt(self.squared_deviations / (self.count - 1)) if self.count > 1 else 0.0
