"""Guards: what the numbers of an update say is going wrong, each reported once, with its remedy.

A run's own report says the same of its end (rlgkd.scripts.report.remarks); these speak while there is time to stop.
watch.py holds them to the updates of a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Metrics = Mapping[str, float]
STUDENT: Final = "rollout/student"
"""The share of an update's texts that the student wrote. A guard that reads it asks what they are like, of which an
update on references alone says nothing."""
OTHER_LENGTH: Final = 1.5
"""The factor in the length of texts from which on a reward that rises may rise by length alone."""
HEAVY_TAIL: Final = 25.0
"""Nats of log-ratio from which on one token in a hundred decides a sampled estimate. On GroundedSummary, whose teacher
is nearly certain, it is 10 to 14."""
TERMS_APART: Final = 50.0
"""Where one term's gradient is so many times as long as the other's, the other says nothing."""
MISMATCH: Final = 0.1
"""Nats a token, three times what bfloat16 rounds."""


@dataclass(frozen=True, kw_only=True)
class Greatest:
    """What entropy and divergence can be at most, in nats."""

    entropy: float
    """The logarithm of the vocabulary's size."""
    divergence: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Guard:
    """A fault that shows in the metrics of an update."""

    name: str
    reads: tuple[str, ...]
    """Metrics without which an update says nothing of it: those of some updates alone are compared at these."""
    fires: Callable[[Metrics, Metrics, Greatest], bool]
    """(the first update's metrics, this one's, the greatest values) -> whether it shows; a comparison with a metric
    that the first update lacks is false."""
    updates: int
    """For so many updates in a row that say something of it, before it is reported."""
    compared_with: int = 1
    """How many of the first updates "the first one's" is the mean of, where that of one is too noisy."""
    unless: str = ""
    """Not if this other warning has been given, which says why."""
    message: str
    """What is reported; `{metric}` is this update's value, `{first_metric}` the first one's."""


def value(metrics: Metrics, name: str) -> float:
    """The metric of this name; NaN if the update has none."""
    return metrics.get(name, math.nan)


def _collapsed(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    entropy = value(now, "train/entropy")
    return entropy < 0.01 * greatest.entropy and 10 * entropy < value(first, "train/entropy")


def _random(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    return value(first, "train/entropy") < 0.9 * greatest.entropy < value(now, "train/entropy")


def _left_teacher(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    begun = value(first, "train/divergence")
    halfway = (begun + greatest.divergence) / 2  # a bounded one, such as JSD, is never ten times as much
    return value(now, "train/divergence") > min(10 * max(begun, 0.1), halfway)


def _never_ended(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    return value(now, "rollout/ended") == 0.0


def _no_gradient(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    return value(now, "train/grad_norm") == 0.0


def _none_right(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    return value(now, "train/gate_right") == 0.0


def _all_right(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    # From the first update on: of a task that has been learnt all texts are right too.
    return value(first, "train/gate_right") == value(now, "train/gate_right") == 1.0


def _unsettled(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    entropy, divergence = value(first, "train/entropy"), value(first, "train/divergence")
    leaves = value(now, "train/divergence") > 1.5 * max(divergence, 0.1)
    return leaves and value(now, "train/entropy") > max(1.3 * entropy, 0.1)


def _reward_by_length(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    factor = value(now, "rollout/ep_len_mean") / value(first, "rollout/ep_len_mean")
    rises = value(now, "rollout/ep_rew_mean") > value(first, "rollout/ep_rew_mean")
    return value(now, "train/alpha") < 1 and rises and max(factor, 1 / factor) > OTHER_LENGTH


def _reward_by_repetition(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    repeats = value(now, "rollout/repeated") > 0.2 + value(first, "rollout/repeated")
    rises = value(now, "rollout/ep_rew_mean") > value(first, "rollout/ep_rew_mean")
    return value(now, "train/alpha") < 1 and rises and repeats


def _heavy_tail(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    return value(now, "agreement/gap_p99") > HEAVY_TAIL


def _one_term(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    policy, divergence = value(now, "train/policy_grad_norm"), value(now, "train/divergence_grad_norm")
    is_start = not value(now, "train/divergence") > 1e-3  # a teacher that is the student's start says nothing yet
    return not is_start and max(policy, divergence) > TERMS_APART * min(policy, divergence)


def _mismatch(first: Metrics, now: Metrics, greatest: Greatest) -> bool:
    return value(now, "train/mismatch") > MISMATCH


GUARDS: Final = (
    Guard(
        name="collapsed",
        reads=("train/entropy", STUDENT),
        fires=_collapsed,
        updates=3,
        message="entropy: it fell from {first_entropy:.3g} to {entropy:.3g} nats a token: the texts collapse into one; "
        "read them, and lower learning_rate, or raise alpha or entropy_bonus",
    ),
    Guard(
        name="random",
        reads=("train/entropy",),
        fires=_random,
        updates=3,
        message="entropy: it rose from {first_entropy:.3g} to {entropy:.3g} nats a token, near that of random tokens; "
        "lower learning_rate",
    ),
    Guard(
        name="divergence",
        reads=("train/divergence",),
        fires=_left_teacher,
        updates=3,
        message="divergence: it rose from {first_divergence:.3g} to {divergence:.3g} nats a token: the student leaves "
        "its teacher; read the texts, and lower learning_rate or raise alpha",
    ),
    Guard(
        name="ended",
        reads=("rollout/ended", STUDENT),
        fires=_never_ended,
        updates=20,
        message="max_new_tokens: no text of 20 updates ended by itself; raise it, give a stop string, or first teach "
        "the student to end",
    ),
    Guard(
        name="grad_norm",
        reads=("train/grad_norm",),
        fires=_no_gradient,
        updates=6,
        unless="reward",
        message="gradient: it was 0 for 6 updates: nothing is learnt; rewards may be equal within each group",
    ),
    Guard(
        name="gate_none_right",
        reads=("train/gate_right",),
        fires=_none_right,
        updates=5,
        message="gate: no text of 5 updates counted as right, so it treats all of them as wrong; set verified_from to "
        "the reward from which a text is right (their mean reward is {ep_rew_mean:.3g})",
    ),
    Guard(
        name="gate_all_right",
        reads=("train/gate_right",),
        fires=_all_right,
        updates=5,
        message="gate: every text of the first 5 updates counted as right, so it treats none as wrong; set "
        "verified_from to the reward from which a text is right (their mean reward is {ep_rew_mean:.3g})",
    ),
    Guard(
        name="learning_rate",
        reads=("train/entropy", "train/divergence"),
        fires=_unsettled,
        updates=5,
        unless="random",
        compared_with=5,
        message="learning_rate: the student becomes less certain (entropy {first_entropy:.3g} to {entropy:.3g} nats) "
        "and leaves its teacher (divergence {first_divergence:.3g} to {divergence:.3g}); divide it by ten, or raise "
        "alpha",
    ),
    Guard(
        name="length",
        reads=("rollout/ep_rew_mean", "rollout/ep_len_mean", "train/alpha", STUDENT),
        fires=_reward_by_length,
        updates=10,
        message="reward: it rose from {first_ep_rew_mean:.3g} to {ep_rew_mean:.3g} while texts went from "
        "{first_ep_len_mean:.0f} to {ep_len_mean:.0f} tokens: read them; if length alone raises it, change the reward "
        "or raise alpha",
    ),
    Guard(
        name="repetition",
        reads=("rollout/ep_rew_mean", "rollout/repeated", "train/alpha", STUDENT),
        fires=_reward_by_repetition,
        updates=5,
        message="reward: it rose from {first_ep_rew_mean:.3g} to {ep_rew_mean:.3g} while texts repeat themselves "
        "({first_repeated:.0%} to {repeated:.0%} of their triples of tokens): read them; change the reward, or raise "
        "alpha",
    ),
    Guard(
        name="tail",
        reads=("agreement/gap_p99",),
        fires=_heavy_tail,
        updates=2,
        message="gap: of one token in a hundred log p differs by {gap_p99:.3g} nats or more between student and "
        "teacher: few tokens decide; set estimator to exact, gap to power or clip, or first distil on the teacher's "
        "texts",
    ),
    Guard(
        name="terms",
        reads=("train/policy_grad_norm", "train/divergence_grad_norm", "train/divergence"),
        fires=_one_term,
        updates=2,
        message="alpha: the gradient of the policy term is {policy_grad_norm:.2g} long, that of the divergence "
        "{divergence_grad_norm:.2g}: one of them says nothing; choose alpha so that both do (docs/choosing-alpha.md), "
        "or another gate where one is 0",
    ),
    Guard(
        name="mismatch",
        reads=("train/mismatch",),
        fires=_mismatch,
        updates=3,
        message="mismatch: log-probabilities of sampling and of training differ by {mismatch:.2g} nats a token: the "
        "policy that is trained did not write these texts; use precision=float32, and look for dropout or a changed "
        "model",
    ),
)
