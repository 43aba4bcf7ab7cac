"""The parts of a compression: how the teacher is taught, the student cut and healed, and the ways to heal that compare.

A way to heal is a recipe of this package: what makes it is read from its YAML. Models, learning rate, prompts of an
update and tokens are the compression's and the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.reproduction.grids import method_of, named_grid

SHARED: Mapping[str, Any] = {"threads": 1, "checkpoint_every": 10, "learning_rate_end": 0.1}
CELL_TOKENS = 10_000
"""Tokens of each cell of the comparison."""
OF_THE_COMPARISON = ("name", "learning_rate", "prompts_per_update", "eval_every")
"""Settings of a recipe that all cells have alike."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, the model that is made smaller, and how."""

    name: str
    env: str
    model: str
    layers: int
    """Layers that the student keeps."""
    teacher: Mapping[str, Any]
    """Settings of the run that teaches the model the task, over the recipe sft."""
    healing: Mapping[str, Any]
    """Settings of the run that heals the student, over the recipe on-policy-kd."""


TASKS = {
    task.name: task
    for task in [
        Task(
            name="docstrings",
            env="rlgkd/DocstringSummary-v0",
            model="smollm2-135m",
            layers=24,
            teacher={"tokens": 20_000, "learning_rate": 1e-4, "prompts_per_update": 16},
            healing={
                "tokens": 40_000,
                "divergence": "reverse_kl",
                "student_fraction": 0.75,
                "reduction": "token_mean",
                "learning_rate": 2e-4,
                "prompts_per_update": 8,
            },
        )
    ]
}
THREE_SEEDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "SFT": ("sft", {}),
    "SeqKD": ("seqkd", {}),
    "on-policy reverse KL": ("on-policy-kd", {"divergence": "reverse_kl"}),
    "JSD(0.9)": ("on-policy-kd", {"divergence": "jsd", "beta": 0.9}),
    "RL alone": ("grpo", {"group_size": 4, "epochs": 1}),
    "RL + GKD": ("grpo", {"group_size": 4, "epochs": 1, "alpha": 0.5, "divergence": "reverse_kl"}),
}
"""Name -> recipe, and settings over it."""
ONE_SEED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "supervised KD": ("supervised-kd", {}),
    "forward KL": ("on-policy-kd", {}),
    "GKD, lambda 0.5": ("gkd", {}),
    "distil, then RL": (
        "opd-then-rl",
        {
            "group_size": 4,
            "eval_every": 0,
            "stages": [
                {"name": "OPD", "alpha": 1, "divergence": "reverse_kl", "reduction": "token_mean", "until": 0.5},
                {"name": "RL", "alpha": 0},
            ],
        },
    ),
}


def healing_grid(
    task: Task,
    methods: Mapping[str, tuple[str, Mapping[str, Any]]],
    seeds: int,
    *,
    teacher: str,
    student: str,
    tokens: int = 0,
    prompts: int = 200,
) -> Grid:
    """Return the grid of ways to heal, all from one student with one teacher.

    Raises: SettingError.
    """
    common = {
        **SHARED,
        "name": f"heal-{task.name}",
        "env": task.env,
        "student": student,
        "teacher": teacher,
        "tokens": tokens or CELL_TOKENS,
        "learning_rate": task.healing["learning_rate"],
        "eval_prompts": prompts,
    }
    settings = {
        name: {**method_of(recipe, OF_THE_COMPARISON), **changes} for name, (recipe, changes) in methods.items()
    }
    for own in settings.values():
        own["prompts_per_update"] = max(1, task.healing["prompts_per_update"] // own.get("group_size", 1))
    return named_grid(common, settings, seeds=seeds, samples=1)
