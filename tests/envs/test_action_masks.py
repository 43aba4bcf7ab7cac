"""A task's mask as the environments show it: each row has its own, the same in every view, as MaskablePPO takes it."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from rlgkd.agents import Reinforce
from rlgkd.envs import TextGenerationEnv, TextTask, TextVecEnv, TextVectorEnv
from rlgkd.errors import SettingError
from rlgkd.lm.top_k_mask import top_k_mask
from rlgkd.ops.token_masks import allowed, transitions

END, COLON, A, B, C = range(5)
TOKENIZER = tiny.word_tokenizer(":", "A", "B", "C")
TABLE = {"letter": {A: "same", B: "same"}, "same": {A: "letter", C: "done"}, "done": {}}


def grammar():
    return transitions(TABLE, start="letter", accepting=["done"], prompt_end=COLON, vocabulary=5, end=END)


def task(mask=None, **settings) -> TextTask:
    return TextTask(
        prompts=["A :", "B C :", ":"],
        reward=lambda completions: [float(text == "B C") for text in completions],
        tokenizer=TOKENIZER,
        max_prompt_tokens=3,
        max_new_tokens=4,
        mask=mask or grammar(),
        **settings,
    )


def test_a_mask_says_what_the_row_so_far_allows() -> None:
    env = TextGenerationEnv(task())
    env.reset(seed=0)
    for action, expected in ((B, {A, B}), (C, {A, C}), (END, {END})):
        mask = env.action_masks()
        assert mask.dtype == bool and mask.shape == (5,) and set(np.flatnonzero(mask)) == expected
        env.step(np.int64(action))
    assert env.action_masks().all(), "a text that has ended allows anything"


def test_every_view_shows_each_rows_own_mask() -> None:
    rng, t = np.random.default_rng(0), task()
    vector, vec = TextVectorEnv(t, num_envs=3, autoreset_mode="SameStep"), TextVecEnv(t, num_envs=3)
    dummy = DummyVecEnv([lambda: TextGenerationEnv(t)] * 3)
    vec.seed(5), dummy.seed(5)
    vector.reset(seed=5), vec.reset(), dummy.reset()
    assert vec.has_attr("action_masks")
    seen = set()
    for _ in range(25):
        masks = np.stack(dummy.env_method("action_masks"))
        assert np.array_equal(np.stack(vec.env_method("action_masks")), masks)
        assert np.array_equal(vector.action_masks(), masks)
        assert np.array_equal(np.stack(vec.env_method("action_masks", indices=[2, 0])), masks[[2, 0]])
        seen |= {len({row.tobytes() for row in masks})}
        actions = np.array([rng.choice(np.flatnonzero(row)) for row in masks])
        for view in (vector, vec, dummy):
            view.step(actions)
    assert seen >= {1, 2, 3}


def test_a_frozen_models_top_k_is_the_same_from_its_cache_as_alone() -> None:
    module = tiny.model(vocabulary=5).requires_grad_(False)
    mask = top_k_mask(module, 2, tokenizer=TOKENIZER, keep_end=False)
    vec = TextVecEnv(task(mask), num_envs=4)
    observations, rng = vec.reset(), np.random.default_rng(0)
    for _ in range(12):
        masks = np.stack(vec.env_method("action_masks"))
        for row, allowed_V in zip(np.asarray(observations), masks, strict=True):
            logits_V = module(torch.from_numpy(row[row >= 0])[None]).logits[0, -1]
            assert set(np.flatnonzero(allowed_V)) == set(logits_V.topk(2).indices.tolist())
        observations, *_ = vec.step(rng.integers(5, size=4))


def test_without_a_mask_everything_is_allowed_and_one_that_allows_nothing_is_an_error() -> None:
    env = TextGenerationEnv(TextTask(prompts=["A"], reward=lambda completions: [0.0], tokenizer=TOKENIZER))
    env.reset(seed=0)
    assert env.action_masks().all()
    none = TextGenerationEnv(task(lambda tokens: torch.zeros(len(tokens), 5, dtype=torch.bool)))
    none.reset(seed=0)
    with pytest.raises(SettingError, match="allows nothing after these tokens"):
        none.action_masks()


def test_an_agent_that_would_sample_without_the_mask_refuses_it() -> None:
    with pytest.raises(SettingError, match="this agent samples without it"):
        Reinforce(tiny.model(vocabulary=5), TextVecEnv(task(), num_envs=2), alpha=0.0)


def test_maskable_ppo_keeps_to_the_mask_and_learns() -> None:
    contrib = pytest.importorskip("sb3_contrib", reason="pip install 'rlgkd[contrib]'")
    from sb3_contrib.common.maskable.evaluation import evaluate_policy

    vec, written = TextVecEnv(task(), num_envs=16), []
    step = vec.step_wait

    def recorded():
        result = step()
        written.extend(info["text"] for info in result[3] if "text" in info)
        return result

    vec.step_wait = recorded
    agent = contrib.MaskablePPO(
        "MlpPolicy", vec, n_steps=16, batch_size=128, n_epochs=5, learning_rate=3e-3, gamma=1.0, seed=0, device="cpu"
    )
    agent.learn(6000)
    assert len(written) > 1000 and all(re.fullmatch("[AB] C|[AB] A [AB] [AC]", text) for text in written)
    assert np.mean([text == "B C" for text in written[:100]]) < 0.5
    assert evaluate_policy(agent, TextVecEnv(task(), num_envs=4), n_eval_episodes=50)[0] > 0.95


def test_masks_pass_through_gymnasiums_wrappers_and_ids() -> None:
    gym.register(
        id="tiny/Masked-v0",
        entry_point="rlgkd.envs.text_env:TextGenerationEnv",
        kwargs={"task": task(allowed([A], vocabulary=5, end=END))},
    )
    env = gym.make("tiny/Masked-v0")
    env.reset(seed=0)
    assert np.flatnonzero(env.get_wrapper_attr("action_masks")()).tolist() == [END, A]
