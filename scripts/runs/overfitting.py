"""Whether training learns its prompts by heart: its reward rises on them, and not as much on held-out ones.

Both rewards are of the student's own samples at one temperature, so they differ by the prompts alone. A hundred prompts
may be harder than others by chance, which is no fault of training: what counts is by how much the gap has grown.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from typing import Any, Final, Self

from rlgkd.agents.watch import Watch
from rlgkd.statistics import Interval
from rlgkd.types import ON_POLICY, Trajectory

PROMPTS: Final = 64
"""How many of the first prompts, and of the newest ones, are compared at most: older texts are of another student."""
ENOUGH: Final = 16
"""And at least."""
FAR_BELOW: Final = 0.2
"""Share of the reward by which the gap has grown, and by more than the four intervals are wide."""

UNKNOWN: Final = Interval()


class TrainingRewards:
    """The rewards of the student's first and newest texts in training, with the held-out one of their beginning.

    The mean of each prompt's texts is one number: texts of one prompt say less of the others than as many prompts.
    """

    def __init__(self, held_out: Interval = UNKNOWN, first: Iterable[float] = (), recent: Iterable[float] = ()) -> None:
        self.held_out = held_out
        self._first = [*first]
        self._recent = deque(recent, maxlen=PROMPTS)

    def add(self, trajectories: Iterable[Trajectory]) -> None:
        """Take the texts of an update; those that the student did not write, or whose reward failed, do not count."""
        of_prompt: dict[str, list[float]] = {}
        for t in trajectories:
            if t.source in ON_POLICY and math.isfinite(t.score.reward):
                of_prompt.setdefault(t.item.key, []).append(t.score.reward)
        means = [math.fsum(rewards) / len(rewards) for rewards in of_prompt.values()]
        self._recent.extend(means)
        self._first.extend(means[: PROMPTS - len(self._first)])

    def to_json(self) -> dict[str, Any]:
        """The values as JSON has them; `from_json` takes them back."""
        held_out = [] if math.isnan(self.held_out.mean) else list(astuple(self.held_out))
        return {"held_out": held_out, "first": [*self._first], "recent": [*self._recent]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises: TypeError, ValueError, KeyError or AttributeError for values that it does not give.
        """
        held_out, first, recent = (list(values[name]) for name in ("held_out", "first", "recent"))
        if any(type(number) not in (int, float) for number in [*held_out, *first, *recent]):
            raise TypeError(f"its training_rewards are {values!r:.60}")
        return cls(Interval(*held_out), first, recent)

    @property
    def first(self) -> Interval:
        """The mean of the first ones with its 95% interval; NaN of too few."""
        return _interval(self._first)

    @property
    def recent(self) -> Interval:
        """The mean of the newest ones with its 95% interval; NaN of too few."""
        return _interval(self._recent)


def learns_by_heart(training: TrainingRewards, held_out: Interval) -> bool:
    """Whether the held-out reward has fallen far short of training's; false where one is not known."""
    then, now, first = training.first, training.recent, training.held_out
    scale = max(abs(now.mean), abs(held_out.mean))
    grown = (now.mean - held_out.mean) - (then.mean - first.mean)
    unknown = math.hypot(*((one.high - one.low) / 2 for one in (then, now, first, held_out)))
    return now.mean > then.mean and grown > FAR_BELOW * scale and grown > unknown and now.low > held_out.high


def warn(watch: Watch, training: TrainingRewards, held_out: Interval, prompts: str) -> None:
    """Say once that training learns by heart, if it does; `prompts` is such as "64 validation prompts"."""
    if learns_by_heart(training, held_out):
        watch.warn_once(
            "held_out",
            f"held-out: the reward went from {training.held_out.mean:.3g} to {held_out.mean:.3g} "
            f"({held_out.low:.3g} to {held_out.high:.3g}) on {prompts} and from {training.first.mean:.3g} to "
            f"{training.recent.mean:.3g} on those it trains on, which it learns by heart; give more prompts or fewer "
            "tokens, raise alpha, or keep the best model (keep_best)",
        )


def _interval(rewards: Iterable[float]) -> Interval:
    known = list(rewards)
    if len(known) < ENOUGH:
        return Interval()
    mean = math.fsum(known) / len(known)
    variance = math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1)
    half = 1.96 * math.sqrt(variance / len(known))
    return Interval(mean, mean - half, mean + half)
