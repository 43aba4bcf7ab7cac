"""What the runs say: each method against those that it should beat, with and without a correction for their number.

Of twenty differences that are nothing, one has a 95% interval that excludes zero. So it is said of each whether the
wider one excludes zero too that holds for all methods of a column at once (Bonferroni: 1 - 0.05 / methods).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlgkd.scripts.frontier.cells import ALPHAS, CONTROL, DISTILLATION, EQ_5, OPD, RL, eq_5, methods
from rlgkd.scripts.reproduction.tables import cell_table
from rlgkd.statistics import Interval, mean_interval

Results = Mapping[str, Any]
"""The content of a task's `results.json`, with `quality`, the measure that decides, and `curves`: cell -> held-out
tokens and measures, means over the seeds."""
RESAMPLES = 20_000
"""More than usual: a corrected interval has few resamples in its tails."""
COLUMNS = (DISTILLATION, OPD, RL, EQ_5, CONTROL)


@dataclass(frozen=True)
class Difference:
    """A method's quality less another's, paired by seed and prompt."""

    interval: Interval
    corrected: Interval

    @property
    def text(self) -> str:
        """Return `+0.012 (0.003 to 0.021) **`: one star for an interval that excludes zero, two if corrected too."""
        return _text(self.interval) + (" **" if self.corrected.sign else " *" if self.interval.sign else "")


def best_alpha(results: Results) -> str:
    """Return the cell of Eq. 5 whose quality on the validation prompts is best at the end of training."""
    curves, quality = results["curves"], results["quality"]
    return max(map(eq_5, ALPHAS), key=lambda name: curves[name][quality][-1])


def differences(results: Results) -> dict[str, dict[str, Difference]]:
    """Return method -> column -> the difference, for all but the method's own column."""
    best = best_alpha(results)
    return {
        name: {
            column: difference(results, name, other)
            for column in COLUMNS
            if (other := best if column == EQ_5 else column) != name
        }
        for name in methods()
    }


def difference(results: Results, ours: str, theirs: str) -> Difference:
    """Return the difference of two cells in quality; those of all other methods are looked at together."""
    values_SP = _less(results, ours, theirs)
    corrected = mean_interval(values_SP, level=1 - 0.05 / (len(methods()) - 1), resamples=RESAMPLES)
    return Difference(interval=mean_interval(values_SP), corrected=corrected)


def _less(results: Results, ours: str, theirs: str) -> np.ndarray:
    """Our quality less theirs, [seeds, prompts]."""
    measure = results["quality"]
    less: np.ndarray = cell_table(results, ours, measure) - cell_table(results, theirs, measure)
    return less


def verdict(results: Results, name: str) -> tuple[str, str]:
    """Return what a method's paper says, and whether the runs support it; two empty texts if it says nothing."""
    method = methods()[name]
    if not method.claim:
        return "", ""
    baseline = best_alpha(results) if method.baseline == EQ_5 else method.baseline
    found = mean_interval(_less(results, name, baseline))
    return f"{method.claim} (here against {baseline})", f"{_support(found.sign, method.expected)}: {_text(found)}"


def _text(found: Interval) -> str:
    return f"{found.mean:+.3f} ({found.low:.3f} to {found.high:.3f})"


def _support(sign: int, expected: int) -> str:
    if not expected:
        return "no, clearly less" if sign < 0 else "not contradicted"
    return {expected: "yes", 0: "not clear", -expected: "no, the reverse"}[sign]


def tokens_to(curve: Mapping[str, Sequence[float]], quality: str, level: float) -> float:
    """Return the tokens at which a held-out curve first reaches a level, on straight lines; inf if it never does.

    Examples:
        >>> tokens_to({"tokens": [0, 100, 200], "exact": [0.0, 0.5, 1.0]}, "exact", 0.75)
        150.0
    """
    tokens, values = curve["tokens"], curve[quality]
    for place, value in enumerate(values):
        if value < level:
            continue
        if place == 0:
            return float(tokens[0])
        share = (level - values[place - 1]) / (value - values[place - 1])
        return float(tokens[place - 1] + share * (tokens[place] - tokens[place - 1]))
    return float("inf")


def speeds(results: Results) -> dict[str, float]:
    """Return method -> by how many times fewer tokens it reaches what plain distillation reaches at its end; 0: never.

    Plain on-policy distillation is the exact reverse KL; its end is the last of its held-out measurements.
    """
    curves, quality = results["curves"], results["quality"]
    plain = curves[DISTILLATION]
    level = plain[quality][-1]
    spent = tokens_to(plain, quality, level)
    return {name: spent / max(1.0, tokens_to(curve, quality, level)) for name, curve in curves.items()}
