"""Findings of a comparison: which cells they are about, on which measures they rest, and their sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlgkd.scripts.comparison.findings import Finding, clearly_best, findings
from rlgkd.scripts.comparison.panels import parting

NOISE = (0.0, 0.01, -0.01, 0.005)


def cell(name: str, against: dict[str, Any] | None = None, **measures: float) -> dict[str, Any]:
    """A cell whose two seeds have these values at each of four prompts, with little chance in them."""
    runs = [
        {"seed": s, "measures": {m: [v + n + 0.002 * s for n in NOISE] for m, v in measures.items()}} for s in range(2)
    ]
    scores = {m: {"mean": v, "low": v - 0.01, "high": v + 0.01} for m, v in measures.items()}
    return {"name": name, "runs": runs, "scores": scores, "against": against or {}}


def found(cells: list[dict[str, Any]]) -> list[Finding]:
    return findings({"cells": cells, "baselines": ["alpha=0", "alpha=1"]})


def of_kind(kind: str, all_findings: list[Finding]) -> list[Finding]:
    return [finding for finding in all_findings if finding.kind == kind]


def sentence(finding: Finding) -> str:
    return str(finding).replace("\N{GREEK SMALL LETTER ALPHA}", "alpha")


START = {
    "start": {
        "reward": {"change": {"mean": 0.3, "low": 0.2, "high": 0.4}},
        "coverage": {"change": {"mean": -0.2, "low": -0.3, "high": -0.1}},
        "truth": {"change": {"mean": -0.2, "low": -0.5, "high": 0.1}},
    }
}
THREE = [
    cell("alpha=0", START, reward=0.95, truth=0.5, coverage=0.3, reverse_kl=2.0),
    cell("alpha=0.5", reward=0.90, truth=0.9, coverage=0.8, reverse_kl=0.1),
    cell("alpha=1", reward=0.60, truth=0.6, coverage=0.5, reverse_kl=0.2),
]


def test_a_reward_that_rose_since_the_start_while_quality_fell_is_exploited() -> None:
    (finding,) = of_kind("exploits", found(THREE))
    assert (finding.cell, finding.others, finding.measures) == ("alpha=0", ("start",), ("coverage",))
    assert sentence(finding).startswith("alpha = 0 exploits the reward: since the start it rose by +0.300")
    level = {"start": {**START["start"], "reward": {"change": {"mean": 0.3, "low": -0.1, "high": 0.4}}}}
    assert not of_kind("exploits", found([cell("alpha=0", level, reward=0.95), *THREE[1:]]))
    assert not of_kind("exploits", found([cell("alpha=0", {"alpha=1": START["start"]}, reward=0.95), *THREE[1:]]))


def test_a_cell_that_beats_both_ends_is_named_with_its_pairs_of_measures() -> None:
    (finding,) = of_kind("beats_both", found(THREE))
    assert (finding.cell, finding.others) == ("alpha=0.5", ("alpha=0", "alpha=1"))
    assert finding.measures == (("truth", "coverage"), ("truth", "reverse_kl"), ("coverage", "reverse_kl"))
    assert sentence(finding).startswith("alpha = 0.5 beats both alpha = 0 and alpha = 1 on both axes")


def test_a_cell_that_is_level_on_one_measure_and_better_on_another_is_at_least_level() -> None:
    cells = [
        cell("alpha=0", reward=0.5, truth=0.5),
        cell("alpha=0.5", reward=0.8, truth=0.8),
        cell("alpha=1", reward=0.5, truth=0.8),
    ]
    (finding,) = of_kind("level_with_both", found(cells))
    assert (finding.cell, finding.measures) == ("alpha=0.5", (("reward", "truth"),))
    assert not of_kind("beats_both", found(cells))


def test_where_no_cell_beats_both_ends_it_says_so() -> None:
    cells = [cell(f"alpha={a}", reward=a, truth=1 - a) for a in (0, 0.5, 1)]
    first = found(cells)[0]
    assert (first.kind, first.others) == ("none_beats_both", ("alpha=0", "alpha=1"))
    assert sentence(first).startswith("No cell in between beats both ends")
    assert not of_kind("none_beats_both", found([cells[0], cells[2]])), "two cells have none in between"


def test_a_cell_with_more_reward_and_less_quality_trades_them() -> None:
    finding, *_ = of_kind("trades", found(THREE))
    assert (finding.cell, finding.others) == ("alpha=0", ("alpha=0.5", "alpha=1"))
    assert finding.measures == ("truth", "coverage")
    assert "against alpha = 0.5 truth" in sentence(finding)


def test_the_best_cell_of_each_measure_is_named() -> None:
    best = {finding.measures[0]: finding for finding in of_kind("best", found(THREE))}
    assert {measure: finding.cell for measure, finding in best.items()} == {
        "reward": "alpha=0",
        "truth": "alpha=0.5",
        "coverage": "alpha=0.5",
        "reverse_kl": "alpha=0.5",
    }
    assert sentence(best["reward"]).startswith("Best reward: alpha = 0,")
    assert sentence(best["reverse_kl"]).startswith("Lowest Reverse KL: alpha = 0.5,")


def test_none_is_best_where_the_next_may_be_as_good() -> None:
    cells = [cell("alpha=0", reward=0.5, reverse_kl=0.9)]
    cells += [cell(f"alpha={a}", reward=0.8, reverse_kl=k) for a, k in ((0.5, 0.2), (1, 0.1))]
    reward, distance = found(cells)[-2:]
    assert (reward.kind, reward.cell, reward.others) == ("none_best", "alpha=0.5", ("alpha=1",))
    assert sentence(reward).startswith(
        "Best reward: none is clearly best. alpha = 0.5 has 0.800 (95% interval 0.790 to 0.810), "
        "not clearly better than alpha = 1 (0.800); clearly better than alpha = 0 by +0.300"
    )
    assert (distance.kind, distance.cell) == ("best", "alpha=1")
    assert sentence(distance).startswith("Lowest Reverse KL: alpha = 1, 0.100 nats/token")
    assert [clearly_best(cells, name) for name in ("reward", "reverse_kl", "length")] == ["", "alpha=1", ""]


def test_the_most_important_findings_come_first() -> None:
    kinds = [finding.kind for finding in found(THREE)]
    assert kinds == ["exploits", "beats_both", "trades", *["best"] * 4]


def test_a_quality_that_peaked_while_the_reward_went_on_rising_has_parted_from_it() -> None:
    reward = np.linspace(0.5, 0.9, 11)
    peaked = np.concatenate([np.linspace(0.4, 0.6, 6), np.linspace(0.55, 0.3, 5)])
    assert parting({"reward": reward, "truth": peaked}) == (
        "Truth peaked at 60.0% after 50% of the tokens and ended at 30.0%, while reward rose from 0.700 to 0.900"
    )
    assert parting({"reward": reward, "truth": reward}) == ""
    assert parting({"reward": reward[::-1], "truth": peaked}) == "", "the reward fell too"
