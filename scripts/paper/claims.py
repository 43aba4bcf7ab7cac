"""The findings of the GKD paper as differences between cells, and whether the miniature's intervals support them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlgkd.scripts.paper.cells import ALPHAS, BASELINES, FRACTIONS, TASKS, mixed, on_policy, rl_gkd
from rlgkd.scripts.reproduction.tables import cell_table
from rlgkd.statistics import Interval, mean_interval

Results = Mapping[str, Any]
"""The content of a task's `results.json`, with `colder`: temperature -> cell -> the measures of each seed."""
Difference = Callable[[Results, str], np.ndarray]
"""(the results of a task, its quality measure) -> [seeds, prompts]."""
BEST = on_policy("JSD(0.9)")
VERDICTS = {1: "shown", 0: "not shown", -1: "the reverse is shown"}


@dataclass(frozen=True)
class Claim:
    """A finding as a difference that is positive if the paper is right."""

    finding: str
    difference: Difference


def cell_values(results: Results, cell: str, measure: str, temperature: str = "") -> np.ndarray:
    """Return a measure of a cell [seeds, prompts], sampled at temperature 1 or at a lower one."""
    if temperature:
        return np.array([run[measure] for run in results["colder"][temperature][cell]], dtype=np.float64)
    return cell_table(results, cell, measure)


def check_claims(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return experiment -> its claims, each with the difference, its interval, and the verdict."""
    quality = next(task.quality for task in TASKS.values() if results["env"] == f"rlgkd/{task.name}-v0")
    return {
        experiment: [
            {"finding": claim.finding, **_outcome(mean_interval(claim.difference(results, quality)))}
            for claim in claims
        ]
        for experiment, claims in CLAIMS.items()
    }


def _outcome(difference: Interval) -> dict[str, Any]:
    bounds = (difference.mean, difference.low, difference.high)
    return {"difference": [round(value, 4) for value in bounds], "verdict": VERDICTS[difference.sign]}


def _more(ours: str, theirs: str, measure: str = "") -> Difference:
    """Return the difference of two cells in a measure, or else in the task's quality."""

    def difference(results: Results, quality: str) -> np.ndarray:
        found: np.ndarray = cell_values(results, ours, measure or quality) - cell_values(
            results, theirs, measure or quality
        )
        return found

    return difference


def _reverse_minus_forward(results: Results, measure: str, temperature: str = "") -> np.ndarray:
    reverse = cell_values(results, on_policy("reverse KL"), measure, temperature)
    forward = cell_values(results, on_policy("forward KL"), measure, temperature)
    difference: np.ndarray = reverse - forward
    return difference


def _lead(results: Results, quality: str) -> np.ndarray:
    return _reverse_minus_forward(results, quality)


def _lead_in_likeness(results: Results, quality: str) -> np.ndarray:
    return _reverse_minus_forward(results, "self_bleu")


def _shrinking_lead(results: Results, quality: str) -> np.ndarray:
    difference: np.ndarray = _lead(results, quality) - _reverse_minus_forward(results, quality, "0.3")
    return difference


CLAIMS: dict[str, list[Claim]] = {
    "1. Methods": [
        *(Claim(f"on-policy GKD, JSD(0.9), beats {name}", _more(BEST, name)) for name in BASELINES),
        Claim(
            "on-policy KD beats supervised KD with the same divergence, forward KL",
            _more(on_policy("forward KL"), "supervised KD"),
        ),
    ],
    "2. The student's share of the batches": [
        *(
            Claim(f"student_fraction {fraction:g} beats 0 (only data), JSD(0.5)", _more(mixed(fraction), mixed(0.0)))
            for fraction in FRACTIONS[1:]
        ),
        Claim("student_fraction 1 beats 0 (only data), JSD(0.5)", _more(on_policy("JSD(0.5)"), mixed(0.0))),
    ],
    "3. Divergence and sampling temperature": [
        Claim("reverse KL has better texts than forward KL at temperature 1", _lead),
        Claim("and less different ones: self-BLEU is higher", _lead_in_likeness),
        Claim("its lead in quality shrinks at temperature 0.3", _shrinking_lead),
    ],
    "4. RL + GKD": [
        *(
            Claim(f"quality: alpha {alpha:g} to the teacher beats RL alone", _more(rl_gkd(alpha), rl_gkd(0.0)))
            for alpha in ALPHAS[1:]
        ),
        *(
            Claim(
                f"reward: alpha {alpha:g} to the teacher gets more than alpha 1",
                _more(rl_gkd(alpha), rl_gkd(1.0), "reward"),
            )
            for alpha in ALPHAS[1:-1]
        ),
        Claim("reward: RL alone gets more than alpha 0.5", _more(rl_gkd(0.0), rl_gkd(0.5), "reward")),
        *(
            Claim(
                f"quality: at alpha {alpha:g} the teacher is a better anchor than the own start (RLEF)",
                _more(rl_gkd(alpha), rl_gkd(alpha, "start")),
            )
            for alpha in ALPHAS[1:-1]
        ),
    ],
    "5. Few prompts": [
        Claim(
            "on-policy with 5% of the prompts beats supervised KD with all",
            _more("on-policy, 5% of the prompts", "supervised KD"),
        ),
        Claim(
            "and supervised KD with the same 5%",
            _more("on-policy, 5% of the prompts", "supervised KD, 5% of the prompts"),
        ),
    ],
}
