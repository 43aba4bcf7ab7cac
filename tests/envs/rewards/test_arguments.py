"""A reward gets the arguments that it names: lists over the batch, single samples, columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from rlgkd.envs import TextTask
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


def rewards_of(reward: Any, **settings: Any) -> list[float]:
    return [score.reward for score in graded(reward, **settings)]


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


def test_a_column_reaches_the_reward_as_it_is_whatever_it_is_called(make_task: Callable[..., TextTask]) -> None:
    rows = [{"prompt": "dog", "items": "x", "references": "y", "__class__": "z", "self": 3, "timeout": None}]
    seen: dict[str, object] = {}

    def reward(completions: Sequence[str], **others: object) -> list[float]:
        seen.update(others)
        return [1.0]

    task = make_task(prompts=rows, reward=reward)
    task.score([task.item("test", 0, 0)], ["cat"])
    assert seen["__class__"] == ["z"] and seen["self"] == [3] and seen["references"] == [""]
    assert isinstance(seen["items"], list) and isinstance(seen["items"][0], Item)


def test_a_column_called_completion_does_not_hide_the_models_from_the_reward(
    make_task: Callable[..., TextTask],
) -> None:
    rows = [{"prompt": "see a dog", "completion": "from the file", "level": 3}]
    seen: list[object] = []

    def reward(completion: str, level: int) -> float:
        seen.extend([completion, level])
        return 0.0

    task = make_task(prompts=rows, reward=reward)
    task.score([task.item("test", 0, 0)], ["the model's"])
    assert seen == ["the model's", 3]
