"""The SB3 view keeps the VecEnv contract as SB3's own DummyVecEnv of the scalar environment does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from rlgkd.envs import TextGenerationEnv, TextTask, TextVecEnv, TextVectorEnv, make_sb3_vec_env
from rlgkd.errors import DataError, SettingError

MakeTask = Callable[..., TextTask]


class RandomPolicy:
    """SB3's `predict`, with tokens at random and now and then the end token."""

    def __init__(self, env: Any, end: int) -> None:
        self.size, self.end, self.rng = int(env.action_space.n), end, np.random.default_rng(0)

    def predict(self, observation: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
        shape = observation.shape[:-1]
        actions = self.rng.integers(self.size, size=shape)
        return np.where(self.rng.random(shape) < 0.2, self.end, actions), None


def test_it_equals_sb3s_dummy_vec_env_of_the_scalar_environment_over_several_episodes(task: TextTask) -> None:
    ours = TextVecEnv(task, num_envs=3)
    theirs = DummyVecEnv([lambda: TextGenerationEnv(task)] * 3)
    policy = RandomPolicy(ours, task.tokenizer.eos_token_id)
    assert ours.seed(7) == theirs.seed(7) == [7, 8, 9]
    observations = ours.reset()
    assert isinstance(observations, np.ndarray) and np.array_equal(observations, theirs.reset())
    ended = np.zeros(3, dtype=int)
    for _ in range(60):
        assert ours.reset_infos == theirs.reset_infos
        actions, _ = policy.predict(observations)
        observations, rewards, dones, infos = ours.step(actions)
        wanted = theirs.step(actions)
        for mine, other in zip((observations, rewards, dones), wanted[:3], strict=True):
            assert np.array_equal(mine, other) and mine.dtype == other.dtype
        for row, info in enumerate(infos):
            last, other = info.pop("terminal_observation", None), wanted[3][row].pop("terminal_observation", None)
            assert (last is None) == (other is None) == (not dones[row]) and np.array_equal(last, other)
            assert info.pop("TimeLimit.truncated", False) is wanted[3][row].pop("TimeLimit.truncated")
            assert info.pop("episode", None) is None or dones[row]
            assert info == wanted[3][row]
        ended += dones
    assert (ended >= 4).all()


def test_the_last_info_holds_terminal_observation_no_truncation_and_a_monitors_episode(task: TextTask) -> None:
    vec = TextVecEnv(task, num_envs=2)
    vec.seed(0)
    vec.reset()
    letter, end = task.encode_completion("a")
    assert vec.step(np.array([letter, letter]))[3] == [{}, {}]
    following, rewards, dones, infos = vec.step(np.array([end, letter]))
    assert dones.tolist() == [True, False] and rewards.dtype == np.float32 and isinstance(following, np.ndarray)
    last = infos[0]["terminal_observation"]
    assert last[last != -1].tolist() == [*task.encode_prompt(task.item("train", 0, 0)), letter, end]
    assert infos[0]["TimeLimit.truncated"] is False
    assert infos[0]["episode"] == {"r": pytest.approx(float(rewards[0])), "l": 2, "t": 0.0}
    assert (infos[0]["text"], infos[0]["stop"]) == ("a", "end")
    assert following[0][following[0] != -1].tolist() == task.encode_prompt(task.item("train", 0, 1))
    assert [info["key"] for info in vec.reset_infos] == [task.item("train", 0, 1).key, task.item("train", 1, 0).key]


def test_a_seed_takes_effect_at_the_next_reset_and_not_before(task: TextTask) -> None:
    vec = TextVecEnv(task, num_envs=1)
    vec.seed(0)
    vec.reset()
    vec.seed(50)
    vec.step(np.array([task.tokenizer.eos_token_id]))
    assert vec.reset_infos[0]["key"] == task.item("train", 0, 1).key
    vec.reset()
    assert vec.reset_infos[0]["key"] == task.item("train", 50, 0).key


def test_options_jump_to_an_item_once(task: TextTask) -> None:
    vec = TextVecEnv(task, num_envs=2)
    vec.seed(0)
    vec.set_options({"index": 9})
    vec.reset()
    assert [info["key"] for info in vec.reset_infos] == [task.item("train", seed, 9).key for seed in (0, 1)]
    vec.reset()
    assert [info["key"] for info in vec.reset_infos] == [task.item("train", seed, 10).key for seed in (0, 1)]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_evaluate_policy_runs_a_random_policy_without_warning(task: TextTask, num_envs: int) -> None:
    vec = TextVecEnv(task, num_envs=num_envs)
    policy = RandomPolicy(vec, task.tokenizer.eos_token_id)
    rewards, lengths = evaluate_policy(policy, vec, n_eval_episodes=7, return_episode_rewards=True)
    assert isinstance(rewards, list) and len(rewards) == len(lengths) == 7
    assert all(1 <= length <= task.max_new_tokens for length in lengths) and len(set(rewards)) > 1


def test_evaluate_policy_runs_on_the_scalar_environment_too(task: TextTask) -> None:
    env = Monitor(TextGenerationEnv(task))
    mean, _ = evaluate_policy(RandomPolicy(env, task.tokenizer.eos_token_id), env, n_eval_episodes=3)
    assert np.isfinite(mean)


def test_it_says_that_it_is_monitored_so_sb3_does_not_wrap_it_again(task: TextTask) -> None:
    vec = TextVecEnv(task, num_envs=2)
    assert vec.env_is_wrapped(Monitor) == [True, True] and vec.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 2
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        VecMonitor(vec)


def test_attributes_and_methods_are_reached_through_the_vec_env(task: TextTask) -> None:
    vec = TextVecEnv(task, num_envs=3, split="test")
    assert vec.get_attr("task") == [task] * 3 and vec.get_attr("split", indices=[0, 2]) == ["test", "test"]
    vec.set_attr("note", 5)
    assert vec.get_attr("note", indices=1) == [5] and not vec.has_attr("nothing")
    assert vec.env_method("has_attr", "task", indices=[0]) == [True]
    vec.close()


def test_make_sb3_vec_env_makes_a_registered_environment_seeded(env_id: str, task: TextTask) -> None:
    vec = make_sb3_vec_env(env_id, num_envs=2, seed=5, split="validation", max_new_tokens=3)
    assert isinstance(vec, VecEnv) and isinstance(vec, TextVecEnv)
    assert (vec.num_envs, vec.split, vec.task.max_new_tokens) == (2, "validation", 3)
    seeded = make_sb3_vec_env(env_id, num_envs=2, seed=5)
    seeded.reset()
    assert [info["key"] for info in seeded.reset_infos] == [task.item("train", seed, 0).key for seed in (5, 6)]


def test_make_sb3_vec_env_makes_one_task_and_no_scalar_environment(
    env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TextTask] = []
    make = TextTask.__init__

    def counted(task: TextTask, **settings: Any) -> None:
        made.append(task)
        make(task, **settings)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a scalar environment was made")

    monkeypatch.setattr(TextTask, "__init__", counted)
    monkeypatch.setattr(TextGenerationEnv, "__init__", refused)
    before = dict(gym.registry[env_id].kwargs)
    assert made == [make_sb3_vec_env(env_id, max_new_tokens=3).task]
    assert gym.registry[env_id].kwargs == before


def test_make_sb3_vec_env_takes_an_id_registered_with_a_subclass_or_a_function(task: TextTask) -> None:
    class Own(TextGenerationEnv):
        def __init__(self, **settings: Any) -> None:
            super().__init__(task, split="test", **settings)

    for name, entry_point in (("own/Class-v0", Own), ("own/Function-v0", lambda **settings: Own(**settings))):
        gym.register(id=name, entry_point=entry_point)
        try:
            vec = make_sb3_vec_env(name, num_envs=2)
        finally:
            del gym.registry[name]
        assert (vec.task, vec.split, vec.num_envs) == (task, "test", 2)


def test_the_vector_environment_turns_into_the_sb3_one(task: TextTask) -> None:
    vec = TextVectorEnv(task, num_envs=2, split="test").as_sb3()
    assert isinstance(vec, TextVecEnv) and (vec.task, vec.split, vec.num_envs) == (task, "test", 2)


def test_wrong_actions_ids_and_splits_are_refused(task: TextTask) -> None:
    vec = TextVecEnv(task, num_envs=2)
    vec.reset()
    with pytest.raises(SettingError, match="action: -1 does not work"):
        vec.step(np.array([-1, 0]))
    with pytest.raises(SettingError, match="give one integer for each of the 2 rows"):
        vec.step(np.array([1]))
    with pytest.raises(SettingError, match="env: 'CartPole-v1' does not work; give the id of a text environment"):
        make_sb3_vec_env("CartPole-v1")
    with pytest.raises(DataError, match="split: 'dev'"):
        TextVecEnv(task, split="dev")


# The embedded assets: this needs rlgkd/assets (python scripts/build_assets.py)


def test_evaluate_policy_runs_on_grounded_summary_by_id() -> None:
    vec = make_sb3_vec_env("rlgkd/GroundedSummary-v0", num_envs=4, split="test", max_new_tokens=4)
    mean, _ = evaluate_policy(RandomPolicy(vec, vec.task.tokenizer.eos_token_id), vec, n_eval_episodes=8)
    assert 0 <= mean <= 1
