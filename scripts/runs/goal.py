"""A measure of an evaluation as something to be improved, as `keep_best` names it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.scripts.report.metrics import METRICS
from rlgkd.statistics import Interval


@dataclass(frozen=True)
class Goal:
    """A measure, and +1 if more of it is better, -1 if less is."""

    measure: str
    sign: int = 1

    def value(self, scores: Mapping[str, Interval]) -> float:
        """The measure's mean; NaN where it is not known."""
        return scores[self.measure].mean if self.measure in scores else math.nan

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than another one, or than none; NaN never is."""
        return math.isfinite(value) and (than is None or self.sign * value > self.sign * than)

    def check(self, measures: Collection[str], field: str) -> None:
        """Refuse a measure that the evaluations of a run do not have.

        Raises: SettingError.
        """
        if self.measure not in measures:
            raise SettingError(field, self.measure, unknown_remedy(self.measure, sorted(measures)))


def goal_of(text: str, field: str) -> Goal:
    """A goal as settings have it: `truth`, or with the sign of what is better, `-length`.

    Without a sign, the direction is that of the reports; of a measure that they do not know, more is better.

    Raises: SettingError for a measure of which neither direction is better, without a sign.

    Examples:
        >>> goal_of("truth", "keep_best"), goal_of("reverse_kl", "keep_best"), goal_of("-mistakes", "keep_best")
        (Goal(measure='truth', sign=1), Goal(measure='reverse_kl', sign=-1), Goal(measure='mistakes', sign=-1))
    """
    measure = text.lstrip("+-")
    if text != measure:
        return Goal(measure, -1 if text.startswith("-") else 1)
    sign = METRICS[measure].better if measure in METRICS else 1
    if not sign:
        remedy = f"neither more nor less of it is better; write +{measure} or -{measure}"
        raise SettingError(field, text, remedy)
    return Goal(measure, sign)
