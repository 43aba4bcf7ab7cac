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
