"""The parts of a compression: how the teacher is taught, the student cut and healed, and the ways to heal that compare.

A way to heal is a recipe of this package: what makes it is read from its YAML. Models, learning rate, prompts of an
update and tokens are the compression's and the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.reproduction import payments
from rlgkd.scripts.reproduction.grids import held_out, method_of, named_grid

SHARED: Mapping[str, Any] = {"threads": 1, "checkpoint_every": 10, "learning_rate_end": 0.1, "eval_forward_kl": True}
CELL_TOKENS = 10_000
"""Tokens of each cell of the comparison."""
EVALUATIONS, VALIDATION_PROMPTS = 4, 32
"""Held-out measurements while a cell trains, and their prompts."""
OF_THE_COMPARISON = ("name", "learning_rate", "prompts_per_update", "eval_every")
"""Settings of a recipe that all cells have alike."""
Methods = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name -> recipe, and settings over it."""

STAGES = (
    {"name": "OPD", "alpha": 1, "divergence": "reverse_kl", "reduction": "token_mean", "until": 0.5},
    {"name": "RL", "alpha": 0},
)
OURS = "on-policy reverse KL"
THREE_SEEDS: Methods = {
    "SFT": ("sft", {}),
    "SeqKD": ("seqkd", {}),
    OURS: ("on-policy-kd", {"divergence": "reverse_kl"}),
    "JSD(0.9)": ("on-policy-kd", {"divergence": "jsd", "beta": 0.9}),
    "RL alone": ("grpo", {"group_size": 4, "epochs": 1}),
    "RL + GKD": ("grpo", {"group_size": 4, "epochs": 1, "alpha": 0.5, "divergence": "reverse_kl"}),
}
ONE_SEED: Methods = {
    "supervised KD": ("supervised-kd", {}),
    "forward KL": ("on-policy-kd", {}),
    "GKD, lambda 0.5": ("gkd", {}),
    "distil, then RL": ("opd-then-rl", {"group_size": 4, "stages": STAGES}),
}
FIRST_FOUR: Methods = dict([*THREE_SEEDS.items()][:4])


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the comparison: some methods, each with some seeds."""

    methods: Methods
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, the model that is made smaller, and how."""

    name: str
    env: str
    env_settings: Mapping[str, Any] = field(default_factory=dict)
    model: str
    layers: int
    """Layers that the student keeps."""
    teacher: Mapping[str, Any]
    """Settings of the run that teaches the model the task, over the recipe sft."""
    healing: Mapping[str, Any]
    """Settings of the run that heals the student, over the recipe on-policy-kd."""
    measures: Mapping[str, str]
    """The task's own measures -> headings, the one that decides first."""
    parts: Mapping[str, Part]
    """Folder -> part of the comparison."""


HEALING: Mapping[str, Any] = {
    "tokens": 40_000,
    "divergence": "reverse_kl",
    "student_fraction": 0.75,
    "reduction": "token_mean",
    "learning_rate": 2e-4,
    "prompts_per_update": 8,
}
TEACHER: Mapping[str, Any] = {"tokens": 20_000, "learning_rate": 1e-4, "prompts_per_update": 16}
_PAYMENTS = payments.__name__
TASKS = {
    task.name: task
    for task in [
        Task(
            name="docstrings",
            env="rlgkd/DocstringSummary-v0",
            model="smollm2-135m",
            layers=24,
            teacher=TEACHER,
            healing=HEALING,
            measures={"reward": "ROUGE-L"},
            parts={
                "three-seeds": Part(methods=THREE_SEEDS, seeds=3),
                "one-seed": Part(methods=ONE_SEED, seeds=1),
            },
        ),
        Task(
            name="extraction",
            env="rlgkd/Dataset-v0",
            env_settings={
                "data": f"{_PAYMENTS}:draw",
                "name": "Extraction",
                "prompt": "{note}",
                "reference": "record",
                "chat": True,
                "system": "Answer with the payment that was made, as JSON like "
                '{"name": "Jo Park", "date": "3 May", "amount": "12.50"}.',
                "reward": f"{_PAYMENTS}:right_fields",
                "quality": {
                    "all_right": f"{_PAYMENTS}:all_right",
                    "parses": f"{_PAYMENTS}:parses",
                    "rougeL": {"name": "rouge", "kind": "rougeL"},
                },
                "max_prompt_tokens": 160,
                "max_new_tokens": 48,
            },
            model="smollm2-135m",
            layers=24,
            teacher=TEACHER,
            healing=HEALING,
            measures={
                "reward": "right fields",
                "all_right": "all right",
                "parses": "parses",
                "rougeL": "ROUGE-L",
            },
            parts={"three-seeds": Part(methods=FIRST_FOUR, seeds=3)},
        ),
    ]
}


def healing_grid(
    task: Task,
    part: Part,
    *,
    teacher: str,
    student: str,
    tokens: int = 0,
    prompts: int = 200,
) -> Grid:
    """Return the grid of ways to heal, all from one student with one teacher.

    Raises: SettingError.
    """
    tokens = tokens or CELL_TOKENS
    common = {
        **SHARED,
        "name": f"heal-{task.name}",
        "env": task.env,
        "env_settings": dict(task.env_settings),
        "student": student,
        "teacher": teacher,
        "tokens": tokens,
        "learning_rate": task.healing["learning_rate"],
        **held_out(tokens, prompts, times=EVALUATIONS, validation_prompts=VALIDATION_PROMPTS),
    }
    settings = {
        name: {**method_of(recipe, OF_THE_COMPARISON), **changes} for name, (recipe, changes) in part.methods.items()
    }
    for own in settings.values():
        own["prompts_per_update"] = max(1, task.healing["prompts_per_update"] // own.get("group_size", 1))
    return named_grid(common, settings, seeds=part.seeds, samples=1)
