"""The methods, mixtures and anchors that the GKD paper compares, as cells of one grid for each embedded task.

Methods are recipes: their settings are read from the recipes' YAML; the task gives models, learning rate and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.comparison.grid import Grid
from rlgkd.scripts.config.recipes import RECIPES
from rlgkd.scripts.reproduction.grids import named_grid

METHOD_SETTINGS = (
    "agent",
    "divergence",
    "beta",
    "estimator",
    "student_fraction",
    "student_fraction_end",
    "mixture",
    "off_policy",
    "reduction",
)
"""Settings of a recipe that make its method."""
BASELINES = {
    "SFT": "sft",
    "SeqKD": "seqkd",
    "supervised KD": "supervised-kd",
    "ImitKD": "imitkd",
    "f-distill": "f-distill",
}
"""The paper's name of a method -> its recipe."""
COMPARED_DIVERGENCES: dict[str, dict[str, Any]] = {
    "forward KL": {"divergence": "forward_kl"},
    "JSD(0.1)": {"divergence": "jsd", "beta": 0.1},
    "JSD(0.5)": {"divergence": "jsd", "beta": 0.5},
    "JSD(0.9)": {"divergence": "jsd", "beta": 0.9},
    "reverse KL": {"divergence": "reverse_kl"},
}
FRACTIONS = (0.0, 0.25, 0.5, 0.75)
"""Shares of on-policy batches; 1 is the on-policy cell."""
ALPHAS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
FEW_PROMPTS = 0.05
"""Share of the prompts in the experiment with few."""
RL_RATE = 0.5
"""Factor on the task's learning rate for RL: with the whole, RL alone falls below its start on two tasks."""


@dataclass(frozen=True, kw_only=True)
class PaperTask:
    """An embedded task, and what its runs have in common."""

    name: str
    paper: str
    """The paper's task that it stands for."""
    quality: str
    """The measure that the paper reports for that task."""
    reward: str
    """The reward of RL, as the page calls it."""
    completion_tokens: int
    """Tokens of a completion, about."""
    settings: Mapping[str, Any]


TASKS = {
    task.name: task
    for task in (
        PaperTask(
            name="GroundedSummary",
            paper="XSum",
            quality="rouge2",
            reward="entailment",
            completion_tokens=16,
            settings={
                "student": "embedded:grounded-student",
                "teacher": "embedded:grounded-teacher",
                "learning_rate": 0.002,
                "tokens": 24_000,
            },
        ),
        PaperTask(
            name="Translate",
            paper="WMT14 en-de",
            quality="reward",
            reward="BLEU",
            completion_tokens=10,
            settings={
                "student": "embedded:translate-student",
                "teacher": "embedded:translate-teacher",
                "learning_rate": 0.002,
                "tokens": 60_000,
            },
        ),
        PaperTask(
            name="Arithmetic",
            paper="GSM8K",
            quality="reward",
            reward="exact match",
            completion_tokens=25,
            settings={
                "student": "embedded:arithmetic-student",
                "teacher": "embedded:arithmetic-teacher",
                "learning_rate": 0.0005,
                "tokens": 75_000,
            },
        ),
    )
}


def measure_label(measure: str, reward: str) -> str:
    """Return the name of a measure as the page and the figures write it; `reward` is the task's name of its reward."""
    return {"reward": reward, "rouge2": "ROUGE-2"}.get(measure, measure)


def on_policy(divergence: str) -> str:
    """Return the name of GKD's cell with on-policy batches alone."""
    return f"on-policy {divergence}"


def mixed(fraction: float) -> str:
    """Return the name of the cell with that share of on-policy batches, JSD(0.5)."""
    return f"student_fraction {fraction:g}"


def rl_gkd(alpha: float, anchor: str = "teacher") -> str:
    """Return the name of the cell of RL + GKD with JSD(0.9) to its anchor: the teacher, or the student's start."""
    return {0.0: "RL", 1.0: f"alpha 1 {anchor}"}.get(alpha, f"RL + {alpha:g} {anchor}")


def cell_settings(task: PaperTask, tokens: int) -> dict[str, dict[str, Any]]:
    """Return name -> settings of each cell, for runs of so many tokens."""
    cells: dict[str, dict[str, Any]] = {}
    distill = {"agent": "Distill", "prompts_per_update": 64, "group_size": 1}
    for name, recipe in BASELINES.items():
        given = load_yaml((RECIPES / f"{recipe}.yaml").read_text())
        cells[name] = {**distill, **{key: given[key] for key in METHOD_SETTINGS if key in given}}
    for name, divergence in COMPARED_DIVERGENCES.items():
        cells[on_policy(name)] = {**distill, **divergence}
    for fraction in FRACTIONS:
        cells[mixed(fraction)] = {**distill, **COMPARED_DIVERGENCES["JSD(0.5)"], "student_fraction": fraction}
    # A share of about as many prompts as the other cells see, which meet each prompt once.
    few = max(1, int(FEW_PROMPTS * tokens / task.completion_tokens))
    cells["on-policy, 5% of the prompts"] = {**distill, **COMPARED_DIVERGENCES["JSD(0.9)"], "train_prompts": few}
    cells["supervised KD, 5% of the prompts"] = {**cells["supervised KD"], "train_prompts": few}
    rl = {
        "agent": "Reinforce",
        "prompts_per_update": 16,
        "group_size": 4,
        "learning_rate": RL_RATE * task.settings["learning_rate"],
        **COMPARED_DIVERGENCES["JSD(0.9)"],
    }
    for anchor in ("teacher", "start"):
        for alpha in ALPHAS:
            teacher = {"teacher": task.settings["student"]} if anchor == "start" else {}
            cells.setdefault(rl_gkd(alpha, anchor), {**rl, "alpha": alpha, **teacher})  # RL alone is in both
    return cells


def paper_grid(task: PaperTask, seeds: int, *, tokens: int = 0, prompts: int = 200, samples: int = 2) -> Grid:
    """Return the grid of all cells of a task; 0 tokens are the task's own number.

    Raises: SettingError.
    """
    tokens = tokens or task.settings["tokens"]
    common = {
        "env": f"rlgkd/{task.name}-v0",
        "name": f"paper-{task.name}",
        **task.settings,
        "eval_prompts": prompts,
        "threads": 1,
        "tokens": tokens,
    }
    return named_grid(common, cell_settings(task, tokens), key="cell", seeds=seeds, samples=samples, baseline=2)
