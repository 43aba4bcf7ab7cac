"""Items of several sources in fixed shares."""

from __future__ import annotations

import pytest

from rlgkd.envs.data.items import read_items
from rlgkd.errors import SettingError

DATA = {"math": ["a", "b", "c"], "code": [{"prompt": "x"}, {"prompt": "y", "source": "of its own"}]}


def test_each_round_has_its_shares_and_each_source_its_own_order() -> None:
    items = read_items(DATA, shares={"math": 2, "code": 1})
    found = [items.item("test", 0, n) for n in range(6)]
    assert [(item.prompt, item.columns["source"]) for item in found] == [
        ("a", "math"),
        ("x", "code"),
        ("b", "math"),
        ("c", "math"),
        ("y", "of its own"),
        ("a", "math"),
    ]
    assert [item.key for item in found[:2]] == ["math/0", "code/0"]
    assert items.size("test") == 3
    train = [items.item("train", 0, n) for n in range(300)]
    assert sum(item.columns["source"] == "math" for item in train) == 200
    assert {item.prompt for item in train} == {"a", "b", "c", "x", "y"}


def test_a_share_of_1_each_takes_turns() -> None:
    items = read_items(DATA, shares={"math": 1, "code": 1})
    assert [items.item("test", 0, n).prompt for n in range(4)] == ["x", "a", "y", "b"]


@pytest.mark.parametrize(
    ("data", "shares", "message"),
    [
        (["a"], {"a": 1}, "give data as a mapping of the same names"),
        (DATA, {"math": 1}, "give a share for each of math, code"),
        (DATA, {"math": 1, "code": 0.5}, "give whole numbers of 1 or more"),
        (DATA, {"math": 1, "code": 0}, "give whole numbers of 1 or more"),
    ],
)
def test_shares_that_do_not_fit_are_refused(data: object, shares: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read_items(data, shares=shares)
