"""Rewards take what they name: arguments, columns, defaults, keywords; a wrong one is refused in one clear line."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from rlgkd.envs.rewards import call_reward, rouge
from rlgkd.errors import DependencyError, SettingError
from rlgkd.types import Item, Score

ITEMS = [
    Item(key="a", prompt="p0", reference="r0", columns={"answer": 3, "level": 1}),
    Item(key="b", prompt="p1", reference="r1", columns={"answer": 5}),
]
TEXTS = ["three", "five!"]


def rewards_of(reward: Any) -> list[float]:
    return [score.reward for score in call_reward(reward, ITEMS, TEXTS)]


def test_a_lambda_over_completions_is_a_reward() -> None:
    assert rewards_of(lambda completions: [len(text) for text in completions]) == [5.0, 5.0]


def test_a_reward_gets_the_arguments_it_names_in_any_order() -> None:
    seen: list[Any] = []

    def reward(items: Any, references: Any, *, completions: Any, prompts: Any) -> list[float]:
        seen.extend([items, references, completions, prompts])
        return [0.0, 0.0]

    rewards_of(reward)
    assert seen == [ITEMS, ["r0", "r1"], TEXTS, ["p0", "p1"]]


def test_a_reward_gets_a_column_that_all_items_have() -> None:
    assert rewards_of(lambda answer: answer) == [3.0, 5.0]


def test_defaults_stand_in_for_what_there_is_not_and_give_way_to_what_there_is() -> None:
    assert rewards_of(lambda completions, scale=2, answer=(): [scale * a for a in answer]) == [6.0, 10.0]
    assert rewards_of(partial(lambda completions, scale: [scale] * len(completions), scale=4)) == [4.0, 4.0]


def test_a_reward_with_keywords_gets_everything() -> None:
    seen: dict[str, Any] = {}
    rewards_of(lambda completions, **kwargs: seen.update(kwargs) or [0, 0])
    assert sorted(seen) == ["answer", "items", "prompts", "references"]


def test_a_callable_object_and_a_method_are_rewards() -> None:
    class Length:
        def __call__(self, completions: Sequence[str]) -> list[int]:
            return [len(text) for text in completions]

        def half(self, completions: Sequence[str]) -> list[float]:
            return [len(text) / 2 for text in completions]

    assert rewards_of(Length()) == [5.0, 5.0]
    assert rewards_of(Length().half) == [2.5, 2.5]


def test_an_unknown_name_is_refused_in_one_line_that_lists_what_there_is() -> None:
    with pytest.raises(SettingError) as caught:
        rewards_of(lambda completions, anwser: [0, 0])
    assert str(caught.value) == (
        "reward: 'anwser' does not work; name its arguments after what there is: "
        "answer, completions, items, prompts, references"
    )


def test_a_column_that_only_some_items_have_counts_as_unknown() -> None:
    with pytest.raises(SettingError, match="'level' does not work"):
        rewards_of(lambda level: level)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]])
def test_another_number_of_values_than_completions_is_refused(values: list[float]) -> None:
    with pytest.raises(SettingError, match=f"'{len(values)} values' does not work; return one for each of the 2 compl"):
        rewards_of(lambda completions: values)


@pytest.mark.parametrize("returned", [None, 1.0, ["good", "bad"], [None, 1.0]])
def test_what_is_no_list_of_numbers_is_refused(returned: object) -> None:
    with pytest.raises(SettingError, match="return a list of floats or Scores, NaN where it failed"):
        rewards_of(lambda completions: returned)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter])
def test_values_may_come_in_any_sequence(kind: Any) -> None:
    values = rewards_of(lambda completions: kind([0.5, 2.0]))
    assert values == [0.5, 2.0] and all(type(value) is float for value in values)


def test_scores_pass_through_with_their_parts() -> None:
    score = Score(reward=1.5, parts={"form": 1.0, "sense": 0.5})
    assert call_reward(lambda completions: [score, 2], ITEMS, TEXTS) == [score, Score(reward=2.0)]


def test_a_failed_reward_stays_nan_and_does_not_become_zero() -> None:
    assert math.isnan(rewards_of(lambda completions: [math.nan, 1.0])[0])


def test_an_error_inside_the_reward_keeps_its_own_type() -> None:
    with pytest.raises(ZeroDivisionError):
        rewards_of(lambda completions: [1 / 0 for _ in completions])


def test_no_completions_need_no_call() -> None:
    assert call_reward(lambda anything: 1 / 0, [], []) == []


def test_rouge_2_is_the_f1_of_shared_word_pairs() -> None:
    # One of two pairs of the completion, one of three of the reference: F1 = 2 (1/2 1/3) / (1/2 + 1/3) = 2/5.
    score = rouge("rouge2")
    assert score(["a red dog", "a"], ["a red cat sat", "a"]) == [pytest.approx(0.4), 0.0]
    assert [s.reward for s in call_reward(score, ITEMS, ["r0", "no"])] == [0.0, 0.0]  # one word has no pair


def test_rouge_without_its_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(DependencyError, match=r"pip install 'rlgkd\[metrics\]'"):
        rouge("rouge2")
