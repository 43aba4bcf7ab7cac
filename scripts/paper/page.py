"""The page docs/paper/results.md: what the GKD paper found, and whether the miniature shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd import checkpoint
from rlgkd.scripts.paper import plots
from rlgkd.scripts.paper.cells import TASKS, measure_label
from rlgkd.scripts.paper.claims import CLAIMS, Results, check_claims
from rlgkd.scripts.reproduction.tables import score_table, table_head

TABLE_MEASURES = (
    "reward",
    "truth",
    "coverage",
    "rouge2",
    "exact",
    "chrf",
    "steps",
    "self_bleu",
    "reverse_kl",
    "reverse_kl_data",
    "length",
)
"""`reverse_kl` is on the run's own prefixes, `reverse_kl_data` on the references'."""


def write_page(found: Mapping[str, Results], docs: Path) -> Path:
    """Write results.md, claims.json, means.json and the figures; return the page's path."""
    docs.mkdir(parents=True, exist_ok=True)
    checked = {task: check_claims(results) for task, results in found.items()}
    means = {task: _means(results) for task, results in found.items()}
    checkpoint.atomic_write(docs / "claims.json", json.dumps(checked, indent=1) + "\n")
    checkpoint.atomic_write(docs / "means.json", json.dumps(means, indent=1) + "\n")
    plots.draw(found, docs)
    checkpoint.atomic_write(docs / "results.md", "\n".join(_page_lines(found, checked)) + "\n")
    return docs / "results.md"


def _means(results: Results) -> dict[str, dict[str, Any]]:
    """Return name -> scores of the untrained models and the cells."""
    untrained = {name: found["scores"] for name, found in results["references"].items()}
    return {**untrained, **{cell["name"]: cell["scores"] for cell in results["cells"]}}


def _page_lines(
    found: Mapping[str, Results], checked: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
) -> list[str]:
    measures = "; ".join(
        f"{task.name}, for {task.paper}: {measure_label(task.quality, task.reward)}" for task in TASKS.values()
    )
    lines = [
        "<!-- written by scripts/reproduce_paper.py -->",
        "",
        "## Findings",
        "",
        f"Differences are of the measure that the paper reports for the task that each stands for ({measures}), "
        "with 95% intervals over seeds and prompts, each by itself: of twenty that are nothing, one will look clear.",
        "",
    ]
    for experiment, claims in CLAIMS.items():
        lines += [f"### {experiment}", "", *table_head("the paper's finding", list(found))]
        for number, claim in enumerate(claims):
            outcomes = [_outcome_text(checked[task][experiment][number]) for task in found]
            lines.append(f"| {claim.finding} | {' | '.join(outcomes)} |")
        lines.append("")
    for task, results in found.items():
        lines += [f"## {task}", "", *score_table(results, TABLE_MEASURES), ""]
    return lines


def _outcome_text(outcome: Mapping[str, Any]) -> str:
    mean, low, high = outcome["difference"]
    return f"{outcome['verdict']}: {mean:+.3f} ({low:+.3f} to {high:+.3f})"
