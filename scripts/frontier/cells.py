"""The methods of 2025 and 2026 that are compared, as cells of one grid for each task.

A method is a recipe: what makes it is read from the recipe's YAML. Models, learning rate, prompts, samples and tokens
are the task's and the same for all; alpha, gate, divergence, estimator and stages are the method's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.reproduction.grids import held_out, method_of, named_grid

COMMON_SETTINGS = (
    *("name", "env", "student", "tokens", "eval_prompts", "threads", "learning_rate", "prompts_per_update"),
    *("group_size", "eval_every", "checkpoint_every"),
)
"""Settings of a recipe that the comparison gives all methods alike."""
SHARED: Mapping[str, Any] = {"prompts_per_update": 16, "group_size": 4, "threads": 1}
ALPHAS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Weights of the divergence in Eq. 5."""
EVALUATIONS = 8
"""Held-out measurements while a run trains, each on VALIDATION_PROMPTS prompts."""
VALIDATION_PROMPTS = 100
EQ_5 = "Eq. 5"
"""As a baseline: the cell of Eq. 5 whose alpha was best on the validation prompts."""
RL, DISTILLATION, OPD, CONTROL = "RL alone", "distillation alone", "OPD", "control: fixed negative"
"""The cells that others are measured against: GRPO; on-policy reverse KL, exact and sampled; no teacher at all."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """An embedded task with a teacher, and what its runs have in common."""

    name: str
    """As a folder and a picture are called too."""
    env: str
    quality: str
    """The measure that decides, which no training sees."""
    settings: Mapping[str, Any]
    teacher_from: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run that makes the teacher, over the recipe on-policy-kd; empty for one that is shipped."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method, and what its paper says of it."""

    settings: Mapping[str, Any]
    baseline: str = ""
    """The cell that the paper compares it with."""
    claim: str = ""
    """What the paper finds, as a sentence whose subject is the method."""
    expected: int = 1
    """What it finds of the difference to the baseline: 1 for more, -1 for less, 0 for no less."""
    rate: float = 1.0
    """Factor on the task's learning rate, where the recipe says that it needs another than its baseline's."""


TASKS = {
    task.name: task
    for task in (
        Task(
            name="GroundedSummary",
            env="rlgkd/GroundedSummary-v0",
            quality="rouge2",
            settings={
                "student": "embedded:grounded-student",
                "teacher": "embedded:grounded-teacher",
                "learning_rate": 0.001,
                "tokens": 48_000,
            },
        ),
        Task(
            name="GroundedSummary-weak",
            env="rlgkd/GroundedSummary-v0",
            quality="rouge2",
            settings={"student": "embedded:grounded-student", "learning_rate": 0.001, "tokens": 48_000},
            teacher_from={
                "env": "rlgkd/GroundedSummary-v0",
                "student": "embedded:grounded-student",
                "teacher": "embedded:grounded-teacher",
                "divergence": "reverse_kl",
                "learning_rate": 0.002,
                "tokens": 60_000,
            },
        ),
        Task(
            name="Arithmetic",
            env="rlgkd/Arithmetic-v0",
            quality="steps",
            settings={
                "student": "embedded:arithmetic-student",
                "teacher": "embedded:arithmetic-teacher",
                "learning_rate": 0.0005,
                "tokens": 60_000,
            },
        ),
        Task(
            name="Translate",
            env="rlgkd/Translate-v0",
            quality="exact",
            settings={
                "student": "embedded:translate-student",
                "teacher": "embedded:translate-teacher",
                "learning_rate": 0.001,
                "tokens": 48_000,
            },
        ),
    )
}


def recipe(name: str, **over: Any) -> dict[str, Any]:
    """Return what makes a recipe's method, with some of it changed."""
    return method_of(name, COMMON_SETTINGS) | over


def eq_5(alpha: float) -> str:
    """Return the name of the cell of Eq. 5 with this alpha."""
    return f"Eq. 5, alpha {alpha:g}"


@cache
def methods() -> Mapping[str, Method]:
    """Return name -> method, those that others are measured against first."""
    mixture = {"agent": "GRPO", "divergence": "reverse_kl"}
    found = {
        RL: Method(settings=recipe("grpo")),
        DISTILLATION: Method(settings=recipe("on-policy-kd", divergence="reverse_kl", reduction="token_mean")),
        OPD: Method(settings=recipe("opd")),
        CONTROL: Method(
            settings=recipe("fixed-negative"),
            baseline=OPD,
            claim="gains as much, without a teacher",
            expected=0,
            rate=0.2,
        ),
    }
    found |= {eq_5(alpha): Method(settings={**mixture, "alpha": alpha}) for alpha in ALPHAS}
    sequential = "beats every joint mixture"
    found |= {
        "OPD then RL": Method(settings=recipe("opd-then-rl"), baseline=EQ_5, claim=sequential),
        "RL then OPD": Method(settings=recipe("rl-then-opd"), baseline="OPD then RL", claim="is worse", expected=-1),
        "KDRL": Method(settings=recipe("kdrl"), baseline=RL, claim="beats RL and distillation alone"),
        "RLSD": Method(settings=recipe("rlsd"), baseline=RL, claim="beats GRPO"),
        "SDAR": Method(settings=recipe("sdar"), baseline=RL, claim="beats GRPO"),
        "SRPO": Method(settings=recipe("srpo"), baseline=RL, claim="beats GRPO and SDPO"),
        "RA-OPD": Method(settings=recipe("ra-opd"), baseline=OPD, claim="beats OPD"),
        "RG-OPD": Method(settings=recipe("ra-opd", gate="rg_opd"), baseline=OPD, claim="beats OPD"),
        "SG-OPD": Method(settings=recipe("ra-opd", gate="sg_opd"), baseline=OPD, claim="beats OPD"),
        "TGOPD": Method(settings=recipe("tgopd"), baseline=OPD, claim="beats OPD"),
        "R2-OPD": Method(settings=recipe("r2-opd"), baseline=OPD, claim="beats OPD"),
        "IW-OPD": Method(settings=recipe("iw-opd"), baseline=OPD, claim="beats OPD"),
        "PowerOPD": Method(settings=recipe("power-opd"), baseline=OPD, claim="beats OPD"),
        "vOPD": Method(settings=recipe("vopd"), baseline=OPD, claim="beats OPD"),
        "AOPD": Method(settings=recipe("aopd"), baseline=OPD, claim="beats OPD"),
        "TIP": Method(
            settings=recipe("tip"), baseline=DISTILLATION, claim="loses nothing with half of the tokens", expected=0
        ),
        "Prefix OPD": Method(
            settings=recipe("prefix-opd"), baseline=DISTILLATION, claim="loses nothing with a third", expected=0
        ),
    }
    return found


def task_grid(task: Task, seeds: int, teacher: str = "", *, tokens: int = 0, prompts: int = 200) -> Grid:
    """Return the grid of all methods on a task.

    Args:
        task: The task.
        seeds: How many.
        teacher: The folder of a teacher that had to be made.
        tokens: Those of a run; 0 are the task's own.
        prompts: Those of the evaluation at the end, with two texts each.

    Raises: SettingError.
    """
    tokens = tokens or task.settings["tokens"]
    common = {
        **SHARED,
        **task.settings,
        **({"teacher": teacher} if teacher else {}),
        "env": task.env,
        "name": task.name,
        "tokens": tokens,
        **held_out(tokens, prompts, times=EVALUATIONS, validation_prompts=VALIDATION_PROMPTS),
    }
    settings = {
        name: {"learning_rate": method.rate * common["learning_rate"], **method.settings}
        for name, method in methods().items()
    }
    return named_grid(common, settings, seeds=seeds, samples=2)
