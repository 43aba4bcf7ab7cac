"""Problems of reasoning-gym: functions of (split, seed, index), scored by its rules, and none of them runs a text."""

from __future__ import annotations

import random
import sys

import gymnasium as gym
import pytest
from gymnasium.utils import env_checker

from rlgkd.envs.tasks.reasoning_gym import reasoning_gym
from rlgkd.errors import DependencyError, SettingError

SPLITS = ("train", "validation", "test")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DependencyError, match=r"dataset: 'leg_counting' .* pip install 'rlgkd\[reasoning-gym\]'"):
        reasoning_gym()


@pytest.fixture
def package() -> None:
    pytest.importorskip("reasoning_gym")


@pytest.mark.usefixtures("package")
def test_every_problem_is_solved_by_its_own_answer_and_not_by_another() -> None:
    for name in ("leg_counting", "chain_sum", "spell_backward", "list_functions", "prime_factorization"):
        task = reasoning_gym(dataset=name)
        items = [task.item("train", 0, n) for n in range(4)]
        assert [score.reward for score in task.score(items, [item.reference for item in items])] == [1.0] * 4
        assert all(score.reward < 0.5 for score in task.score(items, ["no idea at all"] * 4))


@pytest.mark.usefixtures("package")
def test_problems_depend_on_split_seed_and_index_alone_and_splits_share_none() -> None:
    tasks = [reasoning_gym(dataset="list_functions") for _ in range(2)]  # it draws from Python's global stream
    before = random.getstate()
    drawn = [{split: [task.item(split, 5, n) for n in range(12)] for split in SPLITS} for task in tasks]
    assert random.getstate() == before and drawn[0] == drawn[1]
    prompts = [{item.prompt for item in drawn[0][split]} for split in SPLITS]
    assert not any(a & b for n, a in enumerate(prompts) for b in prompts[:n])
    assert drawn[0]["train"] != [tasks[0].item("train", 6, n) for n in range(12)]


@pytest.mark.usefixtures("package")
def test_with_a_marker_the_answer_is_the_text_after_the_last_one() -> None:
    task = reasoning_gym(dataset="chain_sum", marker="####")
    item = task.item("train", 0, 0)
    texts = [f"1 + 1 = 2 #### 2 #### {item.reference}", item.reference, "####"]
    assert [score.reward for score in task.score([item] * 3, texts)] == [1.0, 0.0, 0.0]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["countdown", "spiral_matrix", "n_queens", "binary_matrix", "string_insertion"])
def test_a_data_set_that_runs_the_models_text_is_refused_until_allowed(name: str) -> None:
    with pytest.raises(SettingError, match=r"runs the model's text as Python; .* set evaluate_answers"):
        reasoning_gym(dataset=name)
    assert reasoning_gym(dataset=name, evaluate_answers=True).name == f"ReasoningGym {name}"


@pytest.mark.usefixtures("package")
def test_unknown_names_and_settings_are_refused_in_one_line() -> None:
    with pytest.raises(SettingError, match="dataset: 'leg_count' does not work; did you mean 'leg_counting'"):
        reasoning_gym(dataset="leg_count")
    for given, words in (
        ({"seed": 3}, "leave it out"),
        ({"legs": 3}, "legs"),
        ({"min_animals": -1}, "must be positive"),
    ):
        with pytest.raises(SettingError, match=f"dataset_settings: .*{words}"):
            reasoning_gym(dataset_settings=given)


@pytest.mark.usefixtures("package")
def test_the_id_passes_gymnasiums_checker() -> None:
    env = gym.make("rlgkd/ReasoningGym-v0", dataset_settings={"max_animals": 4})
    env_checker.check_env(env.unwrapped, skip_render_check=True)
