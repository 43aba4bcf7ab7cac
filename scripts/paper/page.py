"""docs/paper: what the GKD paper found, what the miniature shows, and whether its intervals support it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlgkd import checkpoint
from rlgkd.scripts.comparison.cell_statistics import tables
from rlgkd.scripts.paper import plots
from rlgkd.scripts.paper.cells import ALPHAS, BASELINES, FRACTIONS, TASKS, mixed, mixture, on_policy
from rlgkd.statistics import Interval, mean_interval

BEST = on_policy("JSD(0.9)")
SHOWN = (
    "reward", "truth", "coverage", "rouge2", "exact", "chrf", "steps", "self_bleu", "reverse_kl", "reverse_kl_data",
    "length",
)  # fmt: skip
"""Of the page's tables; `reverse_kl` is behind the run's own words, `reverse_kl_data` behind the references'."""
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """A finding as a difference: positive where the paper is right."""

    finding: str
    difference: Callable[[Results, str], np.ndarray]
    """(the results of a task, its quality measure) -> [seeds, prompts]."""


def values(results: Results, cell: str, measure: str, temperature: str = "") -> np.ndarray:
    """[seeds, prompts] of a measure in a cell, at a lower sampling temperature where one is named."""
    if temperature:
        return np.array([run[measure] for run in results["colder"][temperature][cell]], dtype=np.float64)
    found = next(c for c in results["cells"] if c["name"] == cell)
    table: np.ndarray = tables(found)[measure]
    return table


def _more(ours: str, theirs: str, measure: str = "") -> Callable[[Results, str], np.ndarray]:
    return lambda results, quality: (
        values(results, ours, measure or quality) - values(results, theirs, measure or quality)
    )


def _gap(results: Results, measure: str, temperature: str = "") -> np.ndarray:
    ours, theirs = on_policy("reverse KL"), on_policy("forward KL")
    gap: np.ndarray = values(results, ours, measure, temperature) - values(results, theirs, measure, temperature)
    return gap


CLAIMS: dict[str, list[Claim]] = {
    "1. Methods": [
        *(Claim(f"on-policy GKD, JSD(0.9), beats {name}", _more(BEST, name)) for name in BASELINES),
        Claim("on-policy KD beats supervised KD with the same divergence, forward KL",
              _more(on_policy("forward KL"), "supervised KD")),
    ],
    "2. The student's share of the batches": [
        Claim(f"student_fraction {fraction:g} beats 0 (only data), JSD(0.5)", _more(name, mixed(0.0)))
        for fraction, name in [*((f, mixed(f)) for f in FRACTIONS[1:]), (1.0, on_policy("JSD(0.5)"))]
    ],
    "3. Divergence and sampling temperature": [
        Claim("reverse KL has better texts than forward KL at temperature 1", lambda r, q: _gap(r, q)),
        Claim("and less different ones: self-BLEU is higher", lambda r, q: _gap(r, "self_bleu")),
        Claim("its lead in quality shrinks at temperature 0.3", lambda r, q: _gap(r, q) - _gap(r, q, "0.3")),
    ],
    "4. RL + GKD": [
        *(Claim(f"quality: alpha {alpha:g} to the teacher beats RL alone", _more(mixture(alpha), mixture(0.0)))
          for alpha in ALPHAS[1:]),
        *(Claim(f"reward: alpha {alpha:g} to the teacher gets more than alpha 1",
                _more(mixture(alpha), mixture(1.0), "reward")) for alpha in ALPHAS[1:-1]),
        Claim("reward: RL alone gets more than alpha 0.5", _more(mixture(0.0), mixture(0.5), "reward")),
        *(Claim(f"quality: at alpha {alpha:g} the teacher is a better anchor than the own start (RLEF)",
                _more(mixture(alpha), mixture(alpha, "start"))) for alpha in ALPHAS[1:-1]),
    ],
    "5. Few prompts": [
        Claim("on-policy with 5% of the prompts beats supervised KD with all",
              _more("on-policy, 5% of the prompts", "supervised KD")),
        Claim("and supervised KD with the same 5%",
              _more("on-policy, 5% of the prompts", "supervised KD, 5% of the prompts")),
    ],
}  # fmt: skip


def write_page(found: Mapping[str, Results], docs: Path) -> Path:
    """Write results.md, claims.json, means.json and the figures; returns the page's path."""
    docs.mkdir(parents=True, exist_ok=True)
    judged = {task: judge(results) for task, results in found.items()}
    checkpoint.atomic_write(docs / "claims.json", json.dumps(judged, indent=1) + "\n")
    checkpoint.atomic_write(docs / "means.json", json.dumps({t: _means(r) for t, r in found.items()}, indent=1) + "\n")
    plots.draw(found, docs)
    checkpoint.atomic_write(docs / "results.md", "\n".join(_page(found, judged)) + "\n")
    return docs / "results.md"


def judge(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Experiment -> its claims with the difference, its interval, and what that says."""
    quality = next(task.quality for task in TASKS.values() if results["env"] == f"rlgkd/{task.name}-v0")
    return {
        experiment: [{"finding": claim.finding, **_told(mean_interval(claim.difference(results, quality)))}
                     for claim in claims]
        for experiment, claims in CLAIMS.items()
    }  # fmt: skip


def _told(estimate: Interval) -> dict[str, Any]:
    verdict = {1: "shown", 0: "not shown", -1: "the reverse is shown"}[estimate.sign]
    return {"difference": [round(v, 4) for v in (estimate.mean, estimate.low, estimate.high)], "verdict": verdict}


def _means(results: Results) -> dict[str, dict[str, Any]]:
    return {
        **{name: reference["scores"] for name, reference in results["references"].items()},
        **{cell["name"]: cell["scores"] for cell in results["cells"]},
    }


def _page(found: Mapping[str, Results], judged: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[str]:
    lines = [
        "<!-- written by scripts/reproduce_paper.py -->", "", "## Findings", "",
        "Differences are of the measure that the paper reports for the task that each stands for "
        "(" + "; ".join(f"{t.name}, for {t.paper}: {_named(t.quality, t.reward)}" for t in TASKS.values()) + "), "
        "with 95% intervals over seeds and prompts, each by itself: of twenty that are nothing, one will look clear.",
        "",
    ]  # fmt: skip
    for experiment in CLAIMS:
        lines += [f"### {experiment}", "", "| the paper's finding | " + " | ".join(found) + " |",
                  "| --- |" + " --- |" * len(found)]  # fmt: skip
        for place, claim in enumerate(CLAIMS[experiment]):
            told = [_cell(judged[task][experiment][place]) for task in found]
            lines.append(f"| {claim.finding} | " + " | ".join(told) + " |")
        lines.append("")
    for task, results in found.items():
        lines += [f"## {task}", "", *_table(results), ""]
    return lines


def _cell(told: Mapping[str, Any]) -> str:
    mean, low, high = told["difference"]
    return f"{told['verdict']}: {mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _named(measure: str, reward: str) -> str:
    return {"reward": reward, "rouge2": "ROUGE-2"}.get(measure, measure)


def _table(results: Results) -> list[str]:
    shown = [name for name in SHOWN if name in results["cells"][0]["scores"]]
    rows = [("start", results["references"]["start"]["scores"]), *((c["name"], c["scores"]) for c in results["cells"]),
            ("teacher", results["references"]["teacher"]["scores"])]  # fmt: skip

    def row(name: str, scores: Mapping[str, Any]) -> str:
        return f"| {name} | " + " | ".join(_score(scores.get(measure)) for measure in shown) + " |"

    head = "| run | " + " | ".join(shown) + " |"
    return [head, "| --- |" + " --- |" * len(shown), *(row(name, scores) for name, scores in rows)]


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None or score["mean"] is None:
        return ""
    return f"{score['mean']:.3f} ± {(score['high'] - score['low']) / 2:.3f}"
