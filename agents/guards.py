"""Guards: what the numbers of an update say is going wrong, each reported once, with its remedy.

A run's own report says the same of its end (rlgkd.scripts.report.remarks); these speak while there is time to stop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

_log = logging.getLogger(__name__)
Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A fault that shows in the metrics of an update; a comparison with a metric that is not logged is false."""

    name: str
    fires: Callable[[Metrics, Metrics, float], bool]
    """(the first update's metrics, this one's, the logarithm of the vocabulary's size in nats) -> whether it shows."""
    updates: int
    """For so many updates in a row, before it is reported."""
    unless: str = ""
    """Not if this other warning has been given, which says why."""
    message: str
    """What is reported; `{metric}` is this update's value, `{first_metric}` the first one's."""


def _value(metrics: Metrics, name: str) -> float:
    return metrics.get(name, math.nan)


def _collapsed(first: Metrics, now: Metrics, log_vocabulary: float) -> bool:
    entropy = _value(now, "train/entropy")
    return entropy < 0.01 * log_vocabulary and 10 * entropy < _value(first, "train/entropy")


def _random(first: Metrics, now: Metrics, log_vocabulary: float) -> bool:
    return _value(first, "train/entropy") < 0.9 * log_vocabulary < _value(now, "train/entropy")


def _left_teacher(first: Metrics, now: Metrics, log_vocabulary: float) -> bool:
    return _value(now, "train/divergence") > 10 * max(_value(first, "train/divergence"), 0.1)


def _never_ended(first: Metrics, now: Metrics, log_vocabulary: float) -> bool:
    return _value(now, "rollout/ended") == 0.0


def _no_gradient(first: Metrics, now: Metrics, log_vocabulary: float) -> bool:
    return _value(now, "train/grad_norm") == 0.0


def _none_right(first: Metrics, now: Metrics, log_vocabulary: float) -> bool:
    return _value(now, "train/gate_right") == 0.0


def _all_right(first: Metrics, now: Metrics, log_vocabulary: float) -> bool:
    # From the first update on: of a task that has been learnt all texts are right too.
    return _value(first, "train/gate_right") == _value(now, "train/gate_right") == 1.0


GUARDS: Final = (
    Guard(
        name="collapsed",
        fires=_collapsed,
        updates=3,
        message="entropy: it fell from {first_entropy:.3g} to {entropy:.3g} nats a token: the texts collapse into one; "
        "read them, and lower learning_rate, or raise alpha or entropy_bonus",
    ),
    Guard(
        name="random",
        fires=_random,
        updates=3,
        message="entropy: it rose from {first_entropy:.3g} to {entropy:.3g} nats a token, near that of random tokens; "
        "lower learning_rate",
    ),
    Guard(
        name="divergence",
        fires=_left_teacher,
        updates=3,
        message="divergence: it rose from {first_divergence:.3g} to {divergence:.3g} nats a token: the student leaves "
        "its teacher; read the texts, and lower learning_rate or raise alpha",
    ),
    Guard(
        name="ended",
        fires=_never_ended,
        updates=20,
        message="max_new_tokens: no text of 20 updates ended by itself; raise it, give a stop string, or first teach "
        "the student to end",
    ),
    Guard(
        name="grad_norm",
        fires=_no_gradient,
        updates=6,
        unless="reward",
        message="gradient: it was 0 for 6 updates: nothing is learnt; rewards may be equal within each group",
    ),
    Guard(
        name="gate_none_right",
        fires=_none_right,
        updates=5,
        message="gate: no text of 5 updates counted as right, so it treats all of them as wrong; set verified_from to "
        "the reward from which a text is right (their mean reward is {ep_rew_mean:.3g})",
    ),
    Guard(
        name="gate_all_right",
        fires=_all_right,
        updates=5,
        message="gate: every text of the first 5 updates counted as right, so it treats none as wrong; set "
        "verified_from to the reward from which a text is right (their mean reward is {ep_rew_mean:.3g})",
    ),
)


@dataclass
class Watch:
    """The guards over the updates of one training, and its other warnings, each of them once."""

    log_vocabulary: float
    """In nats."""
    speaks: bool = True
    """Whether warnings are logged: of several processes by one."""
    first: Metrics = field(default_factory=dict)
    """Those of the first update since the agent was built."""
    _streaks: dict[str, int] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def see(self, metrics: Metrics) -> None:
        """Warn of what this update shows."""
        self.first = self.first or dict(metrics)
        for guard in GUARDS:
            fires = guard.fires(self.first, metrics, self.log_vocabulary)
            streak = self._streaks[guard.name] = self._streaks.get(guard.name, 0) + 1 if fires else 0
            if streak >= guard.updates and guard.unless not in self._reported:
                self.warn_once(guard.name, guard.message.format(**_names(metrics), **_names(self.first, "first_")))

    def warn_once(self, name: str, message: str) -> None:
        """Log a warning, unless one of this name has been."""
        if name not in self._reported and self.speaks:
            _log.warning("%s", message)
        self._reported.add(name)


def _names(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    return {prefix + name.rpartition("/")[2]: value for name, value in metrics.items()}
