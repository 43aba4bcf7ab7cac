"""Tasks from makers, import paths and settings: a setting that does not exist is named with the nearest one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest

from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv
from rlgkd.envs.task_makers import build_task
from rlgkd.errors import DataError, SettingError

MakeTask = Callable[..., TextTask]
TINY: dict[str, Any] = {"prompts": ["see"], "reward": "exact", "tokenizer": "embedded:grounded-student"}


def test_a_task_is_built_from_an_import_path_with_its_settings(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("somewhere")
    module.maker = make_task  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somewhere", module)
    for maker in ("somewhere:maker", make_task):
        assert build_task(maker, TextTask, max_new_tokens=3).max_new_tokens == 3
    with pytest.raises(SettingError, match="task: 'somewhere:else' does not work; it could not be imported"):
        build_task("somewhere:else", TextTask)


def test_an_id_where_an_import_path_belongs_is_refused() -> None:
    with pytest.raises(SettingError, match=r"registered id to gym\.make"):
        build_task("rlgkd/GroundedSummary-v0", TextTask)


def test_a_ready_task_takes_no_further_settings(task: TextTask) -> None:
    assert build_task(task, TextTask) is task
    with pytest.raises(SettingError, match="takes no further settings"):
        build_task(task, TextTask, max_new_tokens=3)


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
    raise DataError("data", "x", "fix it")


def test_a_maker_that_raises_or_makes_no_task_is_refused_in_one_line() -> None:
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
    with pytest.raises(DataError, match="data: 'x' does not work; fix it"):  # an error of ours stays as it is
        TextGenerationEnv(refuses, anything=1)
