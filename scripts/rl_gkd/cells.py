"""The task, the student's start and its teacher, and the mixtures that are compared, as cells of one grid.

Start and teacher are the same model, trained on references for little and for longer, on other prompts than the cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.reproduction import payments
from rlgkd.scripts.reproduction.grids import held_out, method_of, named_grid

ALPHAS = (0.0, 0.1, 0.25, 0.5, 1.0)
STAGES = "distil, then RL"
EVALUATIONS, VALIDATION_PROMPTS = 4, 64
"""Held-out measurements while a cell trains, and their prompts."""
REFERENCE_SEED = 100
"""Seed of the runs on references: the cells' own would give them the same prompts first."""
OF_THE_TASK = ("name", "learning_rate", "prompts_per_update", "group_size", "eval_every")
"""Settings of a recipe that all cells have alike."""
SHARED: Mapping[str, Any] = {"threads": 1, "checkpoint_every": 10, "lora_rank": 16}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task whose reward can be exploited, and how a model is trained on it."""

    name: str
    env: str
    env_settings: Mapping[str, Any]
    model: str
    start: Mapping[str, Any]
    """Settings of the run that makes the student's start, over the recipe sft."""
    teacher: Mapping[str, Any]
    """Those of the teacher's."""
    cells: Mapping[str, Any]
    """Settings that all cells have."""
    quality: str
    """The measure that decides, which no training sees."""
    measures: Mapping[str, str]
    """Measures of the tables -> headings."""


_PAYMENTS = payments.__name__
_REFERENCES: Mapping[str, Any] = {"learning_rate": 1e-3, "prompts_per_update": 8}
TASKS = {
    task.name: task
    for task in [
        Task(
            name="payments",
            env="rlgkd/Dataset-v0",
            env_settings={
                "data": f"{_PAYMENTS}:draw",
                "name": "Payments",
                "prompt": "{note}",
                "reference": "line",
                "chat": True,
                "system": "Answer with the payment that was made, like: Jo Park, 3 May, 12.50",
                "stop": ["\n"],
                "reward": f"{_PAYMENTS}:named_facts",
                "quality": {"right": "exact", "rougeL": {"name": "rouge", "kind": "rougeL"}},
                "max_prompt_tokens": 120,
                "max_new_tokens": 32,
            },
            model="smollm2-135m",
            start={**_REFERENCES, "tokens": 1000},
            teacher={**_REFERENCES, "tokens": 3200},
            cells={"learning_rate": 1e-3, "prompts_per_update": 4, "group_size": 4, "tokens": 8_000},
            quality="right",
            measures={
                "reward": "reward: facts named",
                "right": "the line itself",
                "rougeL": "ROUGE-L",
                "ended": "ends",
                "length": "tokens of a text",
                "reverse_kl": "reverse KL, nats/token",
            },
        )
    ]
}


def name_of(alpha: float) -> str:
    """Return the name of the cell with this alpha."""
    return f"alpha {alpha:g}"


RL, DISTILLATION = name_of(0.0), name_of(1.0)
MIXTURES = tuple(name_of(alpha) for alpha in ALPHAS if 0.0 < alpha < 1.0)


def rl_gkd_grid(task: Task, seeds: int, *, start: str, teacher: str, tokens: int = 0, prompts: int = 200) -> Grid:
    """Return the grid of all cells of a task.

    Args:
        task: The task.
        seeds: How many.
        start: The folder of the student's start.
        teacher: The teacher's.
        tokens: Tokens of a cell; 0 are the task's own.
        prompts: Prompts of the evaluation at the end, with a text each.

    Raises: SettingError.
    """
    tokens = tokens or task.cells["tokens"]
    common = {
        **SHARED,
        **task.cells,
        "name": f"rl-gkd-{task.name}",
        "env": task.env,
        "env_settings": dict(task.env_settings),
        "student": start,
        "teacher": teacher,
        "tokens": tokens,
        **held_out(tokens, prompts, times=EVALUATIONS, validation_prompts=VALIDATION_PROMPTS),
    }
    one_step = {**method_of("grpo", OF_THE_TASK), "epochs": 1, "divergence": "reverse_kl"}
    settings = {name_of(alpha): {**one_step, "alpha": alpha} for alpha in ALPHAS}
    stages = [{"name": "OPD", "alpha": 1.0, "until": 0.5}, {"name": "RL", "alpha": 0.0}]
    settings[STAGES] = {**one_step, "alpha": 1.0, "stages": stages}
    return named_grid(common, settings, seeds=seeds, samples=1)
