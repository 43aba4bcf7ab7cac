"""Watches a training: holds the guards to its updates, and gives each of its warnings once."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rlgkd.agents.guards import GUARDS, STUDENT, Greatest, Guard, Metrics, value

_log = logging.getLogger(__name__)


@dataclass
class Seen:
    """What has been seen and said of a training; a run that goes on goes on with it."""

    first: list[dict[str, float]] = field(default_factory=list)
    """What guards compare with: of the first updates since the agent was built, or since its objective changed."""
    streaks: dict[str, int] = field(default_factory=dict)
    """By guard, for how many updates in a row it has shown."""
    reported: list[str] = field(default_factory=list)
    """Names of the warnings that are not given again."""
    messages: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The values as JSON has them; `from_json` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises: TypeError, ValueError or AttributeError for values that it does not give.
        """
        seen = cls(**values)
        texts = [*seen.reported, *seen.messages]
        numbers = [number for metrics in seen.first for number in metrics.values()] + [*seen.streaks.values()]
        lists = all(isinstance(one, list) for one in (seen.first, seen.reported, seen.messages))
        if not (lists and {*map(type, texts)} <= {str} and {*map(type, numbers)} <= {int, float}):
            raise TypeError(f"its guards are {values!r:.60}")
        return seen


@dataclass
class Watch:
    """The guards over the updates of one training, and its other warnings, each of them once."""

    greatest: Greatest
    speaks: bool = True
    """Whether warnings are logged: of several processes by one."""
    seen: Seen = field(default_factory=Seen)

    @property
    def messages(self) -> list[str]:
        """What has been reported."""
        return self.seen.messages

    def see(self, metrics: Metrics) -> None:
        """Warn of what this update shows."""
        seen = self.seen
        is_first_of_student = value(metrics, STUDENT) > 0 and not any(value(one, STUDENT) > 0 for one in seen.first)
        if len(seen.first) < max(guard.compared_with for guard in GUARDS) or is_first_of_student:
            compared = {name for guard in GUARDS for name in guard.reads if math.isfinite(value(metrics, name))}
            seen.first.append({name: float(metrics[name]) for name in sorted(compared)})
        for guard in GUARDS:
            if not _says_something(metrics, guard):
                continue
            known = [one for one in seen.first if _says_something(one, guard)]
            first = _usual(known[: guard.compared_with], guard.reads)
            fires = guard.fires(first, metrics, self.greatest)
            streak = seen.streaks[guard.name] = seen.streaks.get(guard.name, 0) + 1 if fires else 0
            if streak >= guard.updates and guard.unless not in seen.reported:
                self.warn_once(guard.name, guard.message.format(**_names(metrics), **_names(first, "first_")))

    def begin_again(self) -> None:
        """Compare with the updates from now on: what is usual for one objective is not for another."""
        self.seen.first.clear()

    def warn_once(self, name: str, message: str) -> None:
        """Log a warning, unless one of this name has been."""
        if name in self.seen.reported:
            return
        self.seen.reported.append(name)
        self.seen.messages.append(message)
        if self.speaks:
            _log.warning("%s", message)


def _says_something(metrics: Metrics, guard: Guard) -> bool:
    """Whether an update says something of a guard's fault."""
    without_students = STUDENT in guard.reads and value(metrics, STUDENT) == 0
    return not without_students and not any(math.isnan(value(metrics, name)) for name in guard.reads)


def _usual(updates: Sequence[Metrics], names: Sequence[str]) -> Metrics:
    """The mean of each of these metrics, in a run that does not break at once; NaN without updates.

    There it would be that of the broken run, so of several updates, whose metrics are not negative, it is at most 1.5
    times the first one's.
    """
    if not updates:
        return dict.fromkeys(names, math.nan)
    means = {name: math.fsum(one[name] for one in updates) / len(updates) for name in names}
    return means if len(updates) == 1 else {name: min(means[name], 1.5 * updates[0][name]) for name in names}


def _names(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    return {prefix + name.rpartition("/")[2]: value for name, value in metrics.items()}
