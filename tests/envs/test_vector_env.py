"""The vector environment is Gymnasium's SyncVectorEnv over the scalar one, token for token, in every autoreset mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv
from rlgkd.errors import SettingError
from rlgkd.types import Item, Score

MakeTask = Callable[..., TextTask]
NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


def likely_to_end(vec: TextVectorEnv, rng: np.random.Generator) -> np.ndarray:
    """Random actions, a fifth of them end tokens."""
    ends = rng.random(vec.num_envs) < 0.2
    actions = rng.integers(vec.single_action_space.n, size=vec.num_envs)  # type: ignore[attr-defined]
    return np.where(ends, vec.task.tokenizer.eos_token_id, actions)


def assert_same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert data_equivalence(mine, other, exact=True), f"{mine}\n{other}"


# Making


def test_gym_make_vec_warns_of_nothing_and_makes_the_lockstep_environment(env_id: str) -> None:
    vec = gym.make_vec(env_id, num_envs=3)  # warnings are errors
    assert isinstance(vec, TextVectorEnv) and vec.num_envs == 3 and vec.metadata["autoreset_mode"] is NEXT
    vec.action_space.seed(0)
    observations, _ = vec.reset(seed=0)
    for _ in range(30):
        assert observations in vec.observation_space
        observations, *_ = vec.step(vec.action_space.sample())
    vec.close()


def test_gym_make_vec_takes_an_autoreset_mode_by_name(env_id: str) -> None:
    vec = gym.make_vec(env_id, num_envs=2, autoreset_mode="SameStep")
    assert vec.metadata["autoreset_mode"] is SAME


def test_gymnasiums_own_vectorizer_takes_the_scalar_environment(env_id: str) -> None:
    vec = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync")
    assert isinstance(vec, SyncVectorEnv)
    vec.reset(seed=0)


def test_gymnasiums_episode_statistics_count_rewards_and_lengths(task: TextTask) -> None:
    vec = gym.wrappers.vector.RecordEpisodeStatistics(TextVectorEnv(task, num_envs=2))
    vec.reset(seed=0)
    _, rewards, terminated, _, infos = vec.step(np.full(2, task.tokenizer.eos_token_id))
    assert terminated.all() and infos["episode"]["l"].tolist() == [1, 1]
    assert np.allclose(infos["episode"]["r"], rewards)


# Equal to the scalar environment


@pytest.mark.parametrize("mode", [NEXT, SAME])
@pytest.mark.parametrize("seed", [0, 11])
def test_it_equals_gymnasiums_sync_vector_env_of_the_scalar_one_in_everything(
    task: TextTask, mode: AutoresetMode, seed: int
) -> None:
    ours = TextVectorEnv(task, num_envs=4, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: TextGenerationEnv(task)] * 4, autoreset_mode=mode)
    rng = np.random.default_rng(seed)
    assert_same(ours.reset(seed=seed), theirs.reset(seed=seed))
    ended = np.zeros(4, dtype=int)
    for step in range(80):
        actions = likely_to_end(ours, rng)
        result = ours.step(actions)
        assert_same(result, theirs.step(actions))
        ended += result[2]
        if step % 25 == 24:
            mask = np.array([True, False, True, False])
            options = {"reset_mask": mask, "index": step}
            seeds = [None, 3, 7, None] if step == 49 else None
            assert_same(ours.reset(seed=seeds, options=dict(options)), theirs.reset(seed=seeds, options=dict(options)))
    assert (ended >= 4).all(), "several episodes of each row"


@pytest.mark.parametrize("mode", [NEXT, SAME])
def test_row_i_seeded_s_is_the_scalar_environment_seeded_s_plus_i(task: TextTask, mode: AutoresetMode) -> None:
    vec = TextVectorEnv(task, num_envs=3, autoreset_mode=mode)
    scalars = [TextGenerationEnv(task) for _ in range(3)]
    observations, infos = vec.reset(seed=7)
    began = [env.reset(seed=7 + row) for row, env in enumerate(scalars)]
    assert [info["key"] for _, info in began] == infos["key"].tolist()
    expected = [observation for observation, _ in began]
    over = [False] * 3
    rng = np.random.default_rng(0)
    for _ in range(60):
        assert np.array_equal(observations, expected)
        actions = likely_to_end(vec, rng)
        observations, rewards, terminated, truncated, infos = vec.step(actions)
        assert not truncated.any()
        for row, env in enumerate(scalars):
            if over[row] and mode is NEXT:
                expected[row], reset_info = env.reset()
                assert (rewards[row], terminated[row]) == (0.0, False) and infos["key"][row] == reset_info["key"]
                over[row] = False
                continue
            expected[row], reward, over[row], _, info = env.step(actions[row])
            assert (rewards[row], terminated[row]) == (reward, over[row])
            if over[row] and mode is SAME:
                assert np.array_equal(infos["final_obs"][row], expected[row])
                assert infos["final_info"]["text"][row] == info["text"]
                expected[row], _ = env.reset()
            elif over[row]:
                assert infos["text"][row] == info["text"] and infos["parts"]["open"][row] == info["parts"]["open"]


# Autoreset, each mode by hand


def test_next_step_ignores_the_action_of_a_row_that_is_reset(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=2)
    vec.reset(seed=0)
    letter, end = task.encode_completion("a")
    vec.step(np.array([letter, letter]))
    last, rewards, terminated, _, infos = vec.step(np.array([end, letter]))
    assert terminated.tolist() == [True, False] and rewards[0] != 0.0
    assert end in last[0] and infos["text"][0] == "a" and infos["_text"].tolist() == [True, False]
    following, rewards, terminated, _, infos = vec.step(np.array([-99, end]))
    assert (rewards[0], terminated.tolist()) == (0.0, [False, True])
    prompt = task.encode_prompt(task.item("train", 0, 1))
    assert following[0][following[0] != -1].tolist() == prompt
    assert infos["_prompt"].tolist() == [True, False] and infos["_text"].tolist() == [False, True]
    assert infos["key"].tolist() == [task.item("train", 0, 1).key, task.item("train", 1, 0).key]


def test_same_step_keeps_the_last_observation_and_info_and_masks_the_rows_that_have_them(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=2, autoreset_mode=SAME)
    vec.reset(seed=0)
    letter, end = task.encode_completion("a")
    following, rewards, terminated, _, infos = vec.step(np.array([end, letter]))
    assert terminated.tolist() == [True, False]
    assert infos["_final_obs"].tolist() == infos["_final_info"].tolist() == infos["_key"].tolist() == [True, False]
    assert infos["final_obs"][0][infos["final_obs"][0] != -1][-1] == end and infos["final_obs"][1] is None
    last = infos["final_info"]
    assert (last["stop"][0], last["key"][0]) == ("end", task.item("train", 0, 0).key)
    assert last["parts"]["open"][0] - last["parts"]["copied"][0] == rewards[0]
    assert following[0][following[0] != -1].tolist() == task.encode_prompt(task.item("train", 0, 1))
    assert infos["key"][0] == task.item("train", 0, 1).key
    *_, infos = vec.step(np.array([letter, letter]))
    assert infos == {}


def test_disabled_waits_for_the_callers_reset(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=2, autoreset_mode=DISABLED)
    vec.reset(seed=0)
    letter, end = task.encode_completion("a")
    vec.step(np.array([end, letter]))
    with pytest.raises(gym.error.ResetNeeded, match="call reset first"):
        vec.step(np.array([letter, letter]))
    _, infos = vec.reset(options={"reset_mask": np.array([True, False])})
    assert infos["_key"].tolist() == [True, False]
    assert not vec.step(np.array([letter, letter]))[2].any()


# Rewards, seeds, copies


def test_rows_that_end_together_are_scored_in_one_call(make_task: MakeTask) -> None:
    calls: list[int] = []

    def reward(completions: list[str], items: list[Item]) -> list[Score]:
        calls.append(len(completions))
        return [Score(reward=float(len(item.prompt))) for item in items]

    task = make_task(reward=reward)
    vec = TextVectorEnv(task, num_envs=5)
    vec.reset(seed=0)
    letter, end = task.encode_completion("a")
    _, rewards, *_ = vec.step(np.array([end, letter, end, letter, end]))
    assert calls == [3]
    prompts = [len(task.item("train", seed, 0).prompt) for seed in range(5)]
    assert rewards.tolist() == [prompts[0], 0, prompts[2], 0, prompts[4]]


def test_a_numpy_seed_and_a_list_of_seeds_count_as_seeds(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=3)
    first, _ = vec.reset(seed=4)
    assert np.array_equal(first, vec.reset(seed=np.int64(4))[0])
    assert np.array_equal(first, vec.reset(seed=[4, 5, 6])[0])


def test_a_seed_does_not_touch_rows_that_are_not_reset(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=2)
    vec.reset(seed=0)
    vec.reset(seed=50, options={"reset_mask": np.array([True, False])})
    _, infos = vec.reset()
    assert infos["key"].tolist() == [task.item("train", 50, 1).key, task.item("train", 1, 1).key]


def test_rows_without_a_seed_begin_with_streams_of_their_own(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=16)
    vec.reset()
    keys = np.stack([vec.reset()[1]["key"] for _ in range(13)], axis=1)
    assert len(set(map(tuple, keys))) > 12


def test_observations_handed_out_do_not_change_later(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=2, autoreset_mode=SAME)
    first, _ = vec.reset(seed=0)
    letter, end = task.encode_completion("a")
    *_, infos = vec.step(np.array([end, letter]))
    kept = [first.copy(), infos["final_obs"][0].copy()]
    for _ in range(5):
        vec.step(np.array([letter, end]))
    assert np.array_equal(first, kept[0]) and np.array_equal(infos["final_obs"][0], kept[1])


# Errors


def test_no_rows_and_unknown_modes_are_refused(task: TextTask) -> None:
    with pytest.raises(SettingError, match="num_envs: 0 does not work"):
        TextVectorEnv(task, num_envs=0)
    with pytest.raises(SettingError, match="autoreset_mode: 'Never' does not work; choose one of NextStep, SameStep"):
        TextVectorEnv(task, autoreset_mode="Never")


@pytest.mark.parametrize("actions", [[1], [1, 1, 1], [[1, 1]]])
def test_actions_that_are_not_one_for_each_row_are_refused_not_broadcast(task: TextTask, actions: Any) -> None:
    vec = TextVectorEnv(task, num_envs=2)
    vec.reset(seed=0)
    with pytest.raises(SettingError, match=r"actions: .* give one for each of the 2 rows"):
        vec.step(np.array(actions))


def test_an_action_out_of_range_is_refused_by_value_and_leaves_the_rows_as_they_were(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=2)
    before, _ = vec.reset(seed=0)
    with pytest.raises(SettingError, match="action: 999 does not work"):
        vec.step(np.array([1, 999]))
    assert np.array_equal(vec.step(np.array([1, 1]))[0][before != -1], before[before != -1])


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2), [0, 1]])
def test_a_reset_mask_that_is_not_one_bool_for_each_row_is_refused(task: TextTask, mask: Any) -> None:
    with pytest.raises(SettingError, match=r"reset_mask: .* give 2 bools, at least one of them True"):
        TextVectorEnv(task, num_envs=2).reset(seed=0, options={"reset_mask": mask})


def test_a_list_of_seeds_of_another_length_is_refused(task: TextTask) -> None:
    with pytest.raises(SettingError, match=r"seed: \[1\] does not work; give one for each of the 2 rows"):
        TextVectorEnv(task, num_envs=2).reset(seed=[1])


# The embedded assets: this needs rlgkd/assets (python scripts/build_assets.py)


def test_grounded_summary_is_made_by_id_in_lockstep_without_warning() -> None:
    vec = gym.make_vec("rlgkd/GroundedSummary-v0", num_envs=3, autoreset_mode="SameStep")
    vec.reset(seed=0)
    assert isinstance(vec, TextVectorEnv)
    _, rewards, terminated, _, infos = vec.step(np.full(3, vec.task.tokenizer.eos_token_id))
    assert terminated.all() and ((rewards >= 0) & (rewards <= 1)).all() and infos["_final_info"].all()
