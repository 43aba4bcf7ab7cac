"""The methods, mixtures and anchors that the GKD paper compares, as cells of one grid for each embedded task.

Methods are recipes: what makes each of them one is read from its YAML; the task gives models, learning rate and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.config.run import RECIPES, check

OF_A_METHOD = (
    "agent", "divergence", "beta", "estimator", "student_fraction", "student_fraction_end", "mixture", "off_policy",
    "divergence_reduction",
)  # fmt: skip
BASELINES = {
    "SFT": "sft", "SeqKD": "seqkd", "supervised KD": "supervised-kd", "ImitKD": "imitkd", "f-distill": "f-distill"
}  # fmt: skip
DIVERGENCES: dict[str, dict[str, Any]] = {
    "forward KL": {"divergence": "forward_kl"},
    "JSD(0.1)": {"divergence": "jsd", "beta": 0.1},
    "JSD(0.5)": {"divergence": "jsd", "beta": 0.5},
    "JSD(0.9)": {"divergence": "jsd", "beta": 0.9},
    "reverse KL": {"divergence": "reverse_kl"},
}
FRACTIONS = (0.0, 0.25, 0.5, 0.75)
"""Of the student's own batches, beside 1, which is on-policy."""
ALPHAS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
FEW = 0.05
"""Share of the prompts."""
RL_RATE = 0.5
"""The share of the task's learning rate that RL has; at the whole, RL alone falls below its start on two tasks."""


@dataclass(frozen=True, kw_only=True)
class PaperTask:
    """An embedded task, with what its runs have in common."""

    name: str
    paper: str
    """The paper's task that it stands for."""
    quality: str
    """The measure that the paper reports for that."""
    reward: str
    """What RL maximises, as the page calls it."""
    text: int
    """Tokens of a text, about."""
    settings: Mapping[str, Any]


TASKS = {
    task.name: task
    for task in (
        PaperTask(
            name="GroundedSummary", paper="XSum", quality="rouge2", reward="entailment", text=16,
            settings={"student": "embedded:grounded-student", "teacher": "embedded:grounded-teacher",
                      "learning_rate": 0.002, "tokens": 24_000},
        ),
        PaperTask(
            name="Translate", paper="WMT14 en-de", quality="reward", reward="BLEU", text=10,
            settings={"student": "embedded:translate-student", "teacher": "embedded:translate-teacher",
                      "learning_rate": 0.002, "tokens": 60_000},
        ),
        PaperTask(
            name="Arithmetic", paper="GSM8K", quality="reward", reward="exact match", text=25,
            settings={"student": "embedded:arithmetic-student", "teacher": "embedded:arithmetic-teacher",
                      "learning_rate": 0.0005, "tokens": 75_000},
        ),
    )
}  # fmt: skip


def on_policy(divergence: str) -> str:
    """The name of GKD's cell with the student's own texts alone."""
    return f"on-policy {divergence}"


def mixed(fraction: float) -> str:
    """The name of the cell with that share of own batches, JSD(0.5)."""
    return f"student_fraction {fraction:g}"


def mixture(alpha: float, anchor: str = "teacher") -> str:
    """The name of the cell of RL + GKD with JSD(0.9) to the teacher, or to the student's own start."""
    return {0.0: "RL", 1.0: f"alpha 1 {anchor}"}.get(alpha, f"RL + {alpha:g} {anchor}")


def cells(task: PaperTask, tokens: int) -> dict[str, dict[str, Any]]:
    """Name -> settings of each cell, of runs of so many tokens."""
    found: dict[str, dict[str, Any]] = {}
    distill = {"agent": "Distill", "prompts_per_update": 64, "group_size": 1}
    for name, recipe in BASELINES.items():
        given = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
        found[name] = {**distill, **{key: given[key] for key in OF_A_METHOD if key in given}}
    for name, chosen in DIVERGENCES.items():
        found[on_policy(name)] = {**distill, **chosen}
    for fraction in FRACTIONS:
        found[mixed(fraction)] = {**distill, **DIVERGENCES["JSD(0.5)"], "student_fraction": fraction}
    # Of about as many as the others see, for they meet each prompt once.
    few = max(1, int(FEW * tokens / task.text))
    found["on-policy, 5% of the prompts"] = {**distill, **DIVERGENCES["JSD(0.9)"], "train_prompts": few}
    found["supervised KD, 5% of the prompts"] = {**found["supervised KD"], "train_prompts": few}
    rl = {
        "agent": "Reinforce", "prompts_per_update": 16, "group_size": 4, "policy_reduction": "constant",
        "learning_rate": RL_RATE * task.settings["learning_rate"], **DIVERGENCES["JSD(0.9)"],
    }  # fmt: skip
    for anchor in ("teacher", "start"):
        for alpha in ALPHAS:
            own = {"teacher": task.settings["student"]} if anchor == "start" else {}
            found.setdefault(mixture(alpha, anchor), {**rl, "alpha": alpha, **own})
    return found


def grid(task: PaperTask, seeds: int, *, tokens: int = 0, prompts: int = 200, samples: int = 2) -> Grid:
    """All cells of a task.

    Raises: SettingError.
    """
    tokens = tokens or task.settings["tokens"]
    common = {
        "env": f"rlgkd/{task.name}-v0", "name": f"paper-{task.name}", **task.settings, "eval_prompts": prompts,
        "threads": 1, "tokens": tokens,
    }  # fmt: skip
    base = check({**common, "agent": "Distill"})
    made = [
        Cell(name=name, values={"cell": name}, settings=check({**common, **chosen}))
        for name, chosen in cells(task, tokens).items()
    ]
    return Grid(base=base, vary={"cell": [cell.name for cell in made]}, cells=made, seeds=range(seeds),
                samples=samples, baselines=[made[2]])  # fmt: skip
