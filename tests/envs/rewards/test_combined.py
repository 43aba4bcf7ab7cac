"""Sums of rewards have parts, and fail where one of their parts fails."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlgkd.envs import rewards
from rlgkd.envs.rewards.grader import Grader
from rlgkd.errors import SettingError
from rlgkd.types import Item, Score

ITEMS = [
    Item(key="a", prompt="p0", reference="r0", columns={"answer": 3, "level": 1}),
    Item(key="b", prompt="p1", reference="r1", columns={"answer": 5}),
]
TEXTS = ["three", "five!"]


def graded(reward: Any, **settings: Any) -> list[Score]:
    return Grader(reward, **settings)(ITEMS, TEXTS)


def test_a_weighted_sum_logs_its_parts_and_fails_where_one_of_them_does() -> None:
    both = rewards.Weighted(
        {
            "size": (2.0, lambda completions: [len(text) for text in completions]),
            "odd": (1.0, lambda completion: 1 / (completion != "three")),
            "answer": (0.5, lambda answer: answer),
        }
    )
    first, second = graded(both)
    assert math.isnan(first.reward) and first.parts["size"] == 5.0 and math.isnan(first.parts["odd"])
    assert second == Score(reward=10 + 1 + 2.5, parts={"size": 5.0, "odd": 1.0, "answer": 5.0})
    with pytest.raises(SettingError):
        rewards.Weighted({})


def test_a_sum_fails_for_its_parts_reason_in_one_line() -> None:
    parts = {"brief": (1.0, rewards.length(3)), "odd": (1.0, lambda completions: [ValueError("no\n  number"), 2.0])}
    first, second = graded(rewards.Weighted(parts), max_failed=1.0)
    assert (first.failure, second.failure) == ("odd: ValueError: no number", "")
    (none, _) = graded(lambda completions: [math.nan, 1.0], max_failed=1.0)
    assert none.failure == "it returned NaN"


def test_a_part_that_abstains_is_left_out_for_that_sample_alone(caplog: pytest.LogCaptureFixture) -> None:
    grader = Grader(
        rewards.Weighted(
            {
                "some": (2.0, lambda completion: None if completion == TEXTS[0] else 1.0),
                "all": (0.5, lambda completions: [4.0] * len(completions)),
            }
        )
    )
    assert grader(ITEMS, TEXTS) == [
        Score(reward=2.0, parts={"all": 4.0}),
        *[Score(reward=4.0, parts={"some": 1.0, "all": 4.0})] * (len(TEXTS) - 1),
    ]
    assert grader.failed == 0 and not caplog.records


def test_a_sample_for_which_every_part_abstains_has_failed_and_a_part_that_always_does_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (score,) = Grader(rewards.Weighted({"a": (1.0, lambda completion: None)}))(ITEMS[:1], TEXTS[:1])
    assert math.isnan(score.reward) and score.failure == "it abstained: it returned None"
    caplog.clear()
    silent = rewards.Weighted({"forgotten": (1.0, lambda completion: None), "one": (1.0, lambda completion: 1.0)})
    for _ in range(3):
        assert silent(ITEMS[:1] * 50, ["a"] * 50) == [Score(reward=1.0, parts={"one": 1.0})] * 50
    (record,) = caplog.records
    assert "forgotten has returned None for all of 50 samples" in record.getMessage()
