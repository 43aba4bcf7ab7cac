"""The teacher in the reward: what each token earns, the identity that makes it reverse KL, the same in every view."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from rlgkd.agents import Reinforce
from rlgkd.envs import (
    TeacherReward,
    TeacherRewardVecEnv,
    TeacherRewardVector,
    TextGenerationEnv,
    TextVecEnv,
    TextVectorEnv,
)
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm import LanguageModel

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
ALPHA, TEMPERATURE = 0.3, 1.5
MIXED = {"alpha": ALPHA, "temperature": TEMPERATURE}


def task(**settings: Any) -> tiny.WordTask:
    settings = {"prompts": ("A", "B C", "C A B"), "max_new_tokens": 3, **settings}
    return tiny.WordTask(TOKENIZER, lambda text: 1.0 + text.count("B"), **settings)


def teacher(kind: str = "llama"):
    return tiny.model(kind, vocabulary=4, seed=1)


def logp_of(module, prefix: list[int], temperature: float = TEMPERATURE) -> torch.Tensor:
    """[V], by a pass of its own."""
    with torch.no_grad():
        return (module(torch.tensor([prefix])).logits[0, -1] / temperature).log_softmax(-1)


def test_each_token_earns_its_log_probability_by_the_teacher_and_the_last_the_task_too() -> None:
    module = teacher()
    env = TeacherReward(TextGenerationEnv(task()), teacher=module, **MIXED)
    for _ in range(3):
        observation, _ = env.reset(seed=0)
        tokens = observation[observation >= 0].tolist()
        for action in (2, 1, 0):
            observation, reward, terminated, _, info = env.step(np.int64(action))
            expected = float(logp_of(module, tokens)[action])
            tokens.append(action)
            assert info["teacher_logp"] == pytest.approx(expected, abs=1e-4)
            assert info["task_reward"] == (2.0 if action == 0 else 0.0) and terminated == (action == 0)
            assert isinstance(reward, float)
            assert reward == pytest.approx(0.7 * info["task_reward"] + 0.3 * expected, abs=1e-4)
            assert observation[observation >= 0].tolist() == tokens


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_vector_environment_earns_what_the_scalar_ones_do(kind: str, mode: AutoresetMode) -> None:
    rows, rng, module = 3, np.random.default_rng(0), teacher(kind)
    vector = TeacherRewardVector(TextVectorEnv(task(), num_envs=rows, autoreset_mode=mode), teacher=module, **MIXED)
    scalars = [TeacherReward(TextGenerationEnv(task()), teacher=module, **MIXED) for _ in range(rows)]
    observations, _ = vector.reset(seed=5)
    singles = [env.reset(seed=5 + row)[0] for row, env in enumerate(scalars)]
    waiting, begun = [False] * rows, 0
    for _ in range(30):
        actions = rng.integers(4, size=rows)
        observations, rewards, terminated, _, infos = vector.step(actions)
        for row, env in enumerate(scalars):
            if waiting[row]:
                singles[row], waiting[row], begun = env.reset()[0], False, begun + 1
                assert rewards[row] == 0 and not infos["_teacher_logp"][row]
                continue
            singles[row], reward, over, _, info = env.step(actions[row])
            assert rewards[row] == pytest.approx(reward, abs=1e-4) and over == terminated[row]
            assert infos["task_reward"][row] == info["task_reward"] and infos["_task_reward"][row]
            assert infos["teacher_logp"][row] == pytest.approx(info["teacher_logp"], abs=1e-4)
            if over and mode is AutoresetMode.SAME_STEP:
                singles[row], begun = env.reset()[0], begun + 1
            waiting[row] = over and mode is AutoresetMode.NEXT_STEP
        assert np.array_equal(observations, np.stack(singles))
        observations[:] = 0  # it is the caller's
    assert begun > 10


def test_the_sb3_view_equals_a_dummy_vec_env_of_the_scalar_ones() -> None:
    rng, module = np.random.default_rng(1), teacher()
    ours = TeacherRewardVecEnv(TextVecEnv(task(), num_envs=3), teacher=module, **MIXED)
    theirs = DummyVecEnv([lambda: TeacherReward(TextGenerationEnv(task()), teacher=module, **MIXED)] * 3)
    ours.seed(7), theirs.seed(7)
    assert np.array_equal(ours.reset(), theirs.reset())
    for _ in range(30):
        actions = rng.integers(4, size=3)
        observations, rewards, dones, infos = ours.step(actions)
        others, wanted, ended, their_infos = theirs.step(actions)
        assert np.array_equal(observations, others) and np.array_equal(dones, ended)
        assert rewards.dtype == wanted.dtype
        observations[:] = 0
        np.testing.assert_allclose(rewards, wanted, atol=1e-4)
        for mine, other in zip(infos, their_infos, strict=True):
            assert mine["task_reward"] == other["task_reward"]
            assert mine["teacher_logp"] == pytest.approx(other["teacher_logp"], abs=1e-4)


def texts(length: int) -> list[list[int]]:
    """All completions: they end with token 0, or at the length limit."""
    every = itertools.product(range(4), repeat=length)
    return [list(text) for text in dict.fromkeys(text[: (*text, 0).index(0) + 1] for text in every)]


def test_with_the_entropy_it_is_the_reward_less_the_reverse_kl_exactly() -> None:
    t, module = task(prompts=("C A",), max_new_tokens=3), teacher()
    student = tiny.model(vocabulary=4, seed=2)
    env = TeacherReward(TextGenerationEnv(t), teacher=module, **MIXED)
    earned, entropy, rewarded, kl, total = 0.0, 0.0, 0.0, 0.0, 0.0
    for text in texts(3):
        env.reset(seed=0)
        rewards, infos, student_logp, teacher_logp, entropies = [], [], 0.0, 0.0, 0.0
        for n, token in enumerate(text):
            _, reward, _, _, info = env.step(np.int64(token))
            rewards.append(reward)
            infos.append(info)
            logp_V = logp_of(student, [3, 1, *text[:n]], 1.0).double()
            entropies -= float((logp_V.exp() * logp_V).sum())
            student_logp += float(logp_V[token])
            teacher_logp += float(logp_of(module, [3, 1, *text[:n]])[token])
        p = np.exp(student_logp)
        total += p
        earned += p * sum(rewards)
        entropy += p * entropies
        rewarded += p * sum(info["task_reward"] for info in infos)
        kl += p * (student_logp - teacher_logp)
    assert total == pytest.approx(1, abs=1e-5) and kl > 0.1
    assert earned + ALPHA * entropy == pytest.approx((1 - ALPHA) * rewarded - ALPHA * kl, abs=1e-5)


def test_one_batched_pass_a_step_goes_on_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[int, int]] = []
    extend = LanguageModel._extend
    monkeypatch.setattr(
        LanguageModel,
        "_extend",
        lambda self, tokens, *rest: fed.append(tuple(tokens.shape)) or extend(self, tokens, *rest),
    )
    vec = TeacherRewardVecEnv(TextVecEnv(task(max_new_tokens=8), num_envs=4), teacher=teacher(), **MIXED)
    fed.clear()  # the teacher is decoded once when it is opened
    vec.reset()
    for actions in ([1] * 4, [1] * 4, [1, 0, 1, 1], [1] * 4, [1] * 4):
        vec.step(np.array(actions))
    # All prompts; then one token each; the row that ended is read in addition, when it is first stepped.
    assert [shape for shape in fed] == [(4, 1), (4, 1), (4, 1), (4, 1), (1, 2), (4, 1)]


def test_the_measured_reward_stays_the_tasks_own() -> None:
    class Always:
        def predict(self, observation: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
            return np.full(len(observation), 2), None

    vec = TeacherRewardVecEnv(TextVecEnv(task(), num_envs=2), teacher=teacher(), **MIXED)
    assert evaluate_policy(Always(), vec, n_eval_episodes=4) == (4.0, 0.0)
    assert vec.env_is_wrapped(Monitor) == [True, True]


def test_environments_and_teachers_that_do_not_fit_are_refused() -> None:
    env, vector, vec = TextGenerationEnv(task()), TextVectorEnv(task()), TextVecEnv(task())
    for wrong, wrapper in ((gym.make("CartPole-v1"), TeacherReward), (vector, TeacherReward)):
        with pytest.raises(SettingError, match="TeacherRewardVector"):
            wrapper(wrong, teacher=teacher(), alpha=0.5)
    seen = gym.wrappers.TransformObservation(env, lambda tokens: tokens[::-1], gym.spaces.Box(-1, 9, (3,), np.int64))
    with pytest.raises(SettingError, match="observations are its own"):
        TeacherReward(seen, teacher=teacher(), alpha=0.5)
    with pytest.raises(SettingError, match="TextVectorEnv"):
        TeacherRewardVector(env, teacher=teacher(), alpha=0.5)
    with pytest.raises(SettingError, match="make_sb3_vec_env"):
        TeacherRewardVecEnv(DummyVecEnv([lambda: gym.make("CartPole-v1")]), teacher=teacher(), alpha=0.5)
    with pytest.raises(SettingError, match=r"alpha: 1.5"):
        TeacherReward(env, teacher=teacher(), alpha=1.5)
    with pytest.raises(ModelError, match="vocabulary differs"):
        TeacherRewardVecEnv(vec, teacher="embedded:grounded-student", alpha=0.5)
    with pytest.raises(ModelError, match="context of 64 tokens is shorter than the environment's 72"):
        TeacherReward(TextGenerationEnv(task(max_new_tokens=69)), teacher=teacher(), alpha=0.5)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda module: TeacherReward(TextGenerationEnv(task()), teacher=module, alpha=0.5),
        lambda module: TeacherRewardVector(TextVectorEnv(task()), teacher=module, alpha=0.5),
        lambda module: TeacherRewardVecEnv(TextVecEnv(task()), teacher=module, alpha=0.5),
    ],
)
def test_an_agent_that_has_the_teacher_in_its_objective_refuses_the_wrapper(wrapped) -> None:
    with pytest.raises(SettingError, match="give this agent teacher= and alpha="):
        Reinforce(tiny.model(vocabulary=4), wrapped(teacher()), alpha=0.0)
