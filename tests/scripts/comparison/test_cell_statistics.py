"""Scores and changes of cells stay in what a measure can be, and changes are paired by seed and prompt."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sample_comparison

from rlgkd.scripts.comparison.cell_statistics import against, paired_change, scores, tables
from rlgkd.statistics import Interval


def cell(values: dict[int | None, list[float]], measure: str = "truth") -> dict[str, Any]:
    """A cell whose runs have these values at each prompt."""
    return {"runs": [{"seed": seed, "measures": {measure: found}} for seed, found in values.items()]}


def test_no_interval_of_two_seeds_and_eight_prompts_leaves_what_is_possible() -> None:
    cells = sample_comparison.results((0, 0.5, 1))["cells"]
    ends = [bound for cell in cells for found in scores(cell).values() for bound in (found.low, found.high)]
    assert min(ends) == 0.0 and max(ends) == 1.0  # both ends were reached, and would have been left
    for ours in cells:
        for theirs in cells:
            change = against(ours, theirs)["truth@2"]["change"]
            assert -1 <= change.low <= change.mean <= change.high <= 1


def test_a_change_is_cut_to_what_is_possible() -> None:
    ours, theirs = cell({0: [0.0] * 8, 1: [1.0] * 8}), cell({0: [0.0] * 8, 1: [0.0] * 8})
    assert paired_change(ours, theirs, "truth") == Interval(0.5, -1.0, 1.0)
    assert against(ours, theirs)["truth"]["change"] == Interval(0.5, -1.0, 1.0)


def test_a_change_is_over_the_seeds_that_both_have() -> None:
    ours, theirs = cell({0: [0.5, 0.7], 1: [9.0, 9.0]}, "reward"), cell({0: [0.1, 0.3], 2: [7.0, 7.0]}, "reward")
    assert paired_change(ours, theirs, "reward").mean == pytest.approx(0.4)
    assert against(ours, theirs)["reward"]["change"].mean == pytest.approx(0.4)
    apart = cell({5: [0.1, 0.3]}, "reward")
    assert math.isnan(paired_change(ours, apart, "reward").mean) and against(ours, apart) == {}


def test_an_untrained_model_is_compared_with_every_seed() -> None:
    ours, teacher = cell({0: [0.5, 0.7], 1: [0.7, 0.9]}), cell({None: [0.5, 0.5]})
    found = against(ours, teacher)["truth"]
    assert found["change"].mean == pytest.approx(0.2)
    assert found["greater"].mean == pytest.approx((0.5 + 3) / 4)  # one tie, three wins


def test_a_measure_that_a_run_lacks_is_left_out() -> None:
    both = {"runs": [{"seed": 0, "measures": {"a": [1.0], "b": [1.0]}}, {"seed": 1, "measures": {"a": [2.0]}}]}
    assert {name: table.tolist() for name, table in tables(both).items()} == {"a": [[1.0], [2.0]]}
    assert tables({"runs": []}) == {}
