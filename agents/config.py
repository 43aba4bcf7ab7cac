"""The agents' settings: what an algorithm fixes and chooses, what contradicts itself, Eq. 5's knobs along schedules."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlgkd.errors import SettingError
from rlgkd.objective import Objective
from rlgkd.ops.returns import check_advantage

PRECISIONS = ("float32", "bfloat16")
MIXTURES = ("batch", "prompt")
COMBINATIONS = ("in_loss", "in_reward")
OF_THE_SESSION = {
    "self", "__class__", "env", "tokenizer", "student_layers", "device", "verbose", "tensorboard_log",
    "stats_window_size",
}  # fmt: skip
"""Arguments of the agents' constructor that are not saved: they belong to the machine, or to the model once built."""


def resolve(
    arguments: Mapping[str, Any], *, agent: str, preset: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """All settings of an agent from its constructor's arguments, in range and free of contradictions.

    Raises: SettingError, which names the first that is not.
    """
    settings: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in arguments.items()
        if name not in OF_THE_SESSION
    }
    for name, fixed in preset.items():
        if settings[name] not in (fixed, None):
            raise SettingError(name, settings[name], f"{agent} fixes it at {fixed}; leave it out")
    own = {**defaults, **preset}
    settings |= {name: value for name, value in own.items() if settings[name] is None}
    rate = settings["learning_rate"]
    if not callable(rate) and not (math.isfinite(rate) and rate > 0):
        raise SettingError("learning_rate", rate, "give a number above 0, or a schedule")
    for name in ("prompts_per_update", "train_prompts", "group_size", "epochs", "token_budget", "rows_at_once"):
        if settings[name] is not None and settings[name] < 1:
            raise SettingError(name, settings[name], "give 1 or more")
    for name, known in (("precision", PRECISIONS), ("mixture", MIXTURES), ("combination", COMBINATIONS)):
        if settings[name] not in known:
            raise SettingError(name, settings[name], f"choose one of {', '.join(known)}")
    _check(settings)
    return settings


def objective_at(settings: Mapping[str, Any], remaining: float) -> Objective:
    """Eq. 5's knobs at this remaining progress, 1 at the start and 0 at the end."""
    knobs = {field.name: settings[field.name] for field in dataclasses.fields(Objective)}
    return Objective(**{name: value(remaining) if callable(value) else value for name, value in knobs.items()})


def least_student_fraction(settings: Mapping[str, Any]) -> float:
    """At any point of its schedule."""
    return min(objective.student_fraction for objective in _along(settings))


def _along(settings: Mapping[str, Any]) -> list[Objective]:
    return [objective_at(settings, remaining) for remaining in np.linspace(1, 0, 101).tolist()]


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself or would be ignored, at any point of the schedules."""
    objectives = _along(settings)
    alphas = [objective.alpha for objective in objectives]
    fractions = [objective.student_fraction for objective in objectives]
    teacher, behaviour, estimator = settings["teacher"], settings["behaviour"], settings["estimator"]
    in_reward, target, decay = (
        settings["combination"] == "in_reward", settings["divergence_target"], settings["teacher_decay"]
    )  # fmt: skip
    if teacher is None and max(alphas) > 0 and not objectives[0].cross_entropy:
        without = ", or alpha=0" if min(alphas) < 1 else ""  # at 1 nothing else is trained on
        raise SettingError("teacher", None, f"alpha is {max(alphas):g}: set teacher=...{without}")
    if min(alphas) < 1 or in_reward:
        check_advantage(settings["advantage"], settings["prompts_per_update"], settings["group_size"])
    positive = (("divergence_target", target), *((name, settings[name]) for name in ("alpha_rate", "lora_alpha")))
    for name, value in positive:
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SettingError(name, value, "give a number above 0")
    if settings["lora_rank"] < 0:
        raise SettingError("lora_rank", settings["lora_rank"], "give 1 or more, or 0 to train the whole model")
    if decay is not None and not 0 <= decay <= 1:
        raise SettingError("teacher_decay", decay, "give a number in [0, 1]")

    rewarded = min(alphas) < 1 or in_reward
    weighed = rewarded or settings["horizon"] > 0 or estimator in ("sampled", "sampled_centred")
    again = settings["epochs"] > 1
    for name, unwanted, where, remedy in (
        ("behaviour", behaviour is not None, max(fractions) == 0, "the student writes nothing; leave it out"),
        ("behaviour", behaviour is not None, weighed and settings["policy_loss"] != "clipped_weight",
         "its texts need importance weights; set policy_loss to clipped_weight"),
        ("estimator", estimator in ("k2", "k3"), again or behaviour is not None,
         "it has no importance weights; set epochs to 1 and leave behaviour out, or use sampled"),
        ("epochs", again, weighed and settings["policy_loss"] == "reinforce",
         "after the first step the texts are another policy's; set policy_loss to clipped, or epochs to 1"),
        ("combination", in_reward, settings["divergence"] != "reverse_kl" or estimator != "sampled",
         "it charges the sampled reverse KL: set divergence to reverse_kl and estimator to sampled"),
        ("combination", in_reward, settings["horizon"] > 0 or behaviour is not None,
         "it charges whole texts of the student's: leave out horizon and behaviour"),
        ("divergence_target", target is not None, callable(settings["alpha"]) or not 0 < alphas[0] < 1,
         "it steers alpha: give alpha a number between 0 and 1"),
        ("divergence_target", target is not None, settings["mixture"] == "prompt",
         "it is held on the student's own batches; set mixture to batch"),
        ("alpha_rate", settings["alpha_rate"] != 0.1, target is None, "set divergence_target too"),
        ("teacher_decay", decay is not None, teacher is None, "give a teacher; the student itself would do"),
        ("lora_alpha", settings["lora_alpha"] is not None, settings["lora_rank"] == 0, "set lora_rank too"),
        ("teacher_decay", decay is not None, settings["lora_rank"] > 0,
         "the student has adapters and the teacher none, so there is nothing to average; leave one of them out"),
        ("teacher_decay", decay is not None, settings["teacher_texts"] is not None,
         "the file would keep texts of teachers that are gone; leave one of them out"),
        ("off_policy", settings["off_policy"] != "references", min(fractions) == 1, "set student_fraction below 1"),
        ("mixture", settings["mixture"] != "batch", min(fractions) == 1, "set student_fraction below 1"),
        ("drop_even_groups", settings["drop_even_groups"], not rewarded, "alpha is 1, so no reward counts"),
        ("overlong_buffer", settings["overlong_buffer"], not rewarded, "alpha is 1, so no reward counts"),
        ("normalise_rewards", settings["normalise_rewards"], not rewarded, "alpha is 1, so no reward counts"),
    ):  # fmt: skip
        if unwanted and where:
            raise SettingError(name, settings[name], remedy)
    if estimator == "k3":
        warnings.warn("estimator k3 as a loss descends the forward KL, not the reverse; use k2", stacklevel=4)
