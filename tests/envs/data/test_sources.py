"""Items in memory: a seed orders the training items in each pass, other splits keep their order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlgkd.envs import ListItems
from rlgkd.errors import DataError
from rlgkd.types import Item


def numbered(size: int, *splits: str) -> ListItems:
    items = [Item(key=str(n), prompt=f"prompt {n}") for n in range(size)]
    return ListItems(dict.fromkeys(splits or ("train", "validation", "test"), items))


@settings(deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**32), pass_=st.integers(0, 5))
def test_a_pass_over_the_training_items_is_a_permutation(size: int, seed: int, pass_: int) -> None:
    items = numbered(size)
    drawn = [items.item("train", seed, pass_ * size + n).prompt for n in range(size)]
    assert sorted(drawn) == sorted(f"prompt {n}" for n in range(size))


@settings(deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 2**32), indices=st.lists(st.integers(0, 50)))
def test_items_do_not_depend_on_what_was_drawn_before(size: int, seed: int, indices: list[int]) -> None:
    items = numbered(size)
    assert [items.item("train", seed, n) for n in indices] == [numbered(size).item("train", seed, n) for n in indices]


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    items = numbered(30)
    orders = {
        tuple(items.item("train", seed, 30 * pass_ + n).prompt for n in range(30))
        for seed in range(3)
        for pass_ in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize("split", ["validation", "test"])
def test_validation_and_test_keep_their_order_whatever_the_seed(split: str) -> None:
    for seed in (0, 1):
        drawn = [numbered(5).item(split, seed, n).prompt for n in range(10)]
        assert drawn == [f"prompt {n}" for n in range(5)] * 2


def test_an_unknown_split_is_refused_by_name() -> None:
    for call in (lambda items: items.size("dev"), lambda items: items.item("dev", 0, 0)):
        with pytest.raises(DataError, match="split: 'dev' does not work; choose one of train, test"):
            call(numbered(3, "train", "test"))
