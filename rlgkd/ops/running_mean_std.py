"""RunningMeanStd mean and deviation of what comes in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunningMeanStd:
    """Number, mean and sum of squared deviations of all values seen so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def seen(self, values: Sequence[float]) -> RunningMeanStd:
        """With these values seen too; NaN is passed over.

        Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for sample variances".

        Example:
            >>> RunningMeanStd().seen([1.0, 2.0]).seen([float("nan"), 6.0])
            RunningMeanStd(count=3, mean=3.0, squares=14.0)
        """
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return self
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        count, apart = self.count + len(values), mean - self.mean
        return RunningMeanStd(
            count,
            self.mean + apart * len(values) / count,
            self.squares + squares + apart**2 * self.count * len(values) / count,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation; 1 as long as no two values have differed."""
        return 1.0 if self.same else self._deviation

    @property
    def same(self) -> bool:
        """Whether no two values have differed (by more than rounding)."""
        return self._deviation <= 1e-8 * max(1.0, abs(self.mean))

    @property
    def _deviation(self) -> float:
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
