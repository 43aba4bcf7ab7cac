"""The agents' settings: what an algorithm fixes and chooses, what contradicts itself, Eq. 5's knobs along schedules."""

from __future__ import annotations

import dataclasses
import math
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
    for name in ("prompts_per_update", "group_size", "epochs", "token_budget"):
        if settings[name] < 1:
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


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself, at any point of the schedules."""
    objectives = [objective_at(settings, remaining) for remaining in np.linspace(1, 0, 101).tolist()]
    alphas = [objective.alpha for objective in objectives]
    teacher, behaviour = settings["teacher"], settings["behaviour"]
    if teacher is None and max(alphas) > 0 and not objectives[0].cross_entropy:
        raise SettingError("teacher", None, "alpha is above 0, so give a teacher, or set alpha to 0")
    if min(alphas) < 1 or settings["combination"] == "in_reward":
        check_advantage(settings["advantage"], settings["prompts_per_update"], settings["group_size"])
    weighed = min(alphas) < 1 or settings["horizon"] > 0 or settings["estimator"] != "exact"
    if behaviour is not None and settings["policy_loss"] == "reinforce" and weighed:
        remedy = "its texts need importance weights; set policy_loss to clipped_weight"
        raise SettingError("behaviour", behaviour, remedy)
    if settings["combination"] == "in_reward":
        for name, needed in (
            ("divergence", "reverse_kl"),
            ("estimator", "sampled"),
            ("horizon", 0),
            ("behaviour", None),
        ):
            if settings[name] != needed:
                raise SettingError(
                    "combination", "in_reward", f"it charges the sampled reverse KL: set {name} to {needed}"
                )
    target, decay = settings["divergence_target"], settings["teacher_decay"]
    for name, value in (("divergence_target", target), ("alpha_rate", settings["alpha_rate"])):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SettingError(name, value, "give a number above 0")
    if target is not None and (callable(settings["alpha"]) or not 0 < settings["alpha"] < 1):
        raise SettingError("divergence_target", target, "it steers alpha: give alpha a number between 0 and 1")
    if decay is not None and not 0 <= decay <= 1:
        raise SettingError("teacher_decay", decay, "give a number in [0, 1]")
    if decay is not None and teacher is None:
        raise SettingError("teacher_decay", decay, "give a teacher; the student itself would do")
