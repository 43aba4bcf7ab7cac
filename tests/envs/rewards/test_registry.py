"""Settings and makers that cannot be: one line that names the field and the nearest name, whoever was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv
from rlgkd.errors import DataError, SettingError

TINY: dict[str, Any] = {"prompts": ["see"], "reward": "exact", "tokenizer": "embedded:grounded-student"}


@pytest.mark.parametrize("make", [TextTask, TextGenerationEnv, TextVectorEnv])
def test_a_misspelt_keyword_is_named_with_the_nearest(make: Callable[..., Any]) -> None:
    with pytest.raises(SettingError) as caught:
        make(**TINY, max_new_token=3)
    assert str(caught.value).startswith(
        "max_new_token: 3 does not work; TextTask has no such setting; did you mean 'max_new_tokens'? known: at_limit, "
    )


def test_a_keyword_that_is_needed_is_named() -> None:
    with pytest.raises(SettingError, match="reward: None does not work; TextTask needs it; pass reward="):
        TextGenerationEnv(prompts=["see"], tokenizer="embedded:grounded-student")


@pytest.mark.parametrize(
    ("env", "setting", "nearest"),
    [("Dataset", "promt", "prompt"), ("Dataset", "dat", "data"), ("Guess", "larges", "largest")],
)
def test_a_misspelt_setting_of_an_id_is_named_with_the_nearest_of_its_own_and_of_the_tasks(
    env: str, setting: str, nearest: str
) -> None:
    with pytest.raises(SettingError, match=f"^{setting}: 'x' does not work; .* did you mean '{nearest}'"):
        gym.make(f"rlgkd/{env}-v0", **{setting: "x"})


def test_a_model_in_a_misspelt_setting_is_not_printed() -> None:
    with pytest.raises(SettingError, match=r"^prompt_: 'Broken' does not work"):
        TextTask(**TINY, prompt_=Broken())


class Broken:
    """Makes a task, it says."""

    def __call__(self, word: str = "") -> Any:
        return {}[word]


def nothing() -> None:
    """Forgets to return."""


def refuses(**settings: Any) -> TextTask:
    raise DataError("data", "x", "mend it")


def test_a_maker_that_raises_or_makes_no_task_is_told_in_one_line() -> None:
    with pytest.raises(
        SettingError, match="task: 'nothing' does not work; it returned None and no task; return a TextT"
    ):
        TextGenerationEnv(nothing)
    with pytest.raises(
        SettingError, match=r"'Broken' does not work; it raised KeyError: 'a' \(.*py:\d+, in __call__\)"
    ):
        TextGenerationEnv(Broken(), word="a")
    with pytest.raises(SettingError, match="words: 'a' does not work; Broken has no such setting; did you mean 'word'"):
        TextGenerationEnv(Broken(), words="a")
    with pytest.raises(DataError, match="data: 'x' does not work; mend it"):  # what is told already stays as it is
        TextGenerationEnv(refuses, anything=1)


@pytest.mark.parametrize("odd", ["64", 1.5, None, 0])
def test_a_limit_that_is_no_whole_number_is_refused_by_name(odd: Any) -> None:
    with pytest.raises(SettingError, match=r"max_new_tokens: .* give at least 1 token, as a whole number"):
        TextTask(**TINY, max_new_tokens=odd)
