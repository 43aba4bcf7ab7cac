"""The scalar environment keeps Gymnasium's and SB3's contracts, and is what the fast rollout samples from."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3_checker
from gymnasium.utils import env_checker
from transformers import PreTrainedTokenizerFast

import rlgkd
from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv
from rlgkd.envs.registry import text_env_ids
from rlgkd.errors import DataError, DependencyError, ModelError, SettingError
from rlgkd.lm import LanguageModel
from rlgkd.rollout import rollout

MakeTask = Callable[..., TextTask]
MAX_NEW = 10


def actions_of(env: TextGenerationEnv, text: str) -> list[int]:
    return env.task.encode_completion(text)


# Contracts. Warnings are errors here (pyproject), so passing means that none was given.


def test_gymnasiums_checker_passes(env_id: str) -> None:
    env_checker.check_env(gym.make(env_id, render_mode="ansi").unwrapped)


def test_sb3s_checker_passes(env_id: str) -> None:
    sb3_checker.check_env(gym.make(env_id).unwrapped)


def test_gym_make_warns_of_nothing_over_whole_episodes(env_id: str) -> None:
    env = gym.make(env_id, render_mode="ansi")
    env.action_space.seed(0)
    for episode in range(5):
        observation, _ = env.reset(seed=episode)
        over = False
        while not over:
            assert observation in env.observation_space and isinstance(env.render(), str)
            observation, _, over, cut, _ = env.step(env.action_space.sample())
            assert not cut
    env.close()


def test_a_render_mode_that_there_is_not_makes_gymnasium_warn(env_id: str) -> None:
    with pytest.warns(UserWarning, match="not in the possible render_modes"):
        gym.make(env_id, render_mode="human")


def test_an_unknown_id_gets_gymnasiums_clear_error() -> None:
    with pytest.raises(gym.error.NameNotFound, match=r"GroundedSumary.*Did you mean"):
        gym.make("rlgkd/GroundedSumary-v0")
    with pytest.raises(gym.error.VersionNotFound):
        gym.make("rlgkd/GroundedSummary-v7")


def test_the_registered_ids_are_there() -> None:
    assert rlgkd.__version__
    assert {"rlgkd/GroundedSummary-v0", "rlgkd/DocstringSummary-v0"} <= gym.registry.keys()


def test_an_environment_of_prompts_and_a_reward_function_works_without_registration(folder: str) -> None:
    env = TextGenerationEnv(
        prompts=["see a dog"],
        reward=lambda completions: [len(text) for text in completions],
        tokenizer=folder,
        max_new_tokens=64,
    )
    env.reset(seed=0)
    *_, last = [env.step(action) for action in actions_of(env, "a cat")]
    assert last[1:4] == (5.0, True, False) and last[4]["text"] == "a cat"


# An episode


def test_the_observation_is_the_tokens_so_far_padded_with_minus_one(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    observation, info = env.reset(seed=3)
    prompt = task.encode_prompt(task.item("train", 3, 0))
    assert info == {"key": task.item("train", 3, 0).key, "prompt": task.item("train", 3, 0).prompt, "reference": ""}
    written = list(prompt)
    for action in actions_of(env, "dog"):
        assert observation.tolist() == written + [-1] * (env.observation_space.shape[0] - len(written))
        observation, *_ = env.step(action)
        written.append(action)


def test_the_reward_comes_with_the_last_token_and_the_info_names_text_stop_and_parts(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    _, began = env.reset(seed=0)
    *before, last = [env.step(action) for action in actions_of(env, "a red dog")]
    assert all(step[1:] == (0.0, False, False, {}) for step in before)
    score = task.score([task.item("train", 0, 0)], ["a red dog"])[0]
    assert last[1:4] == (score.reward, True, False)
    assert [type(value) for value in last[1:4]] == [float, bool, bool]
    assert last[4] == {"key": began["key"], "text": "a red dog", "stop": "end", "parts": dict(score.parts)}


def test_the_length_limit_is_a_termination_and_the_text_is_scored_as_it_stands(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    letter = actions_of(env, "a")[0]
    steps = [env.step(letter) for _ in range(MAX_NEW)]
    assert [step[2] for step in steps] == [False] * (MAX_NEW - 1) + [True]
    assert steps[-1][4]["stop"] == "length" and steps[-1][4]["text"] == "a a a a a a a a a a"


def test_the_end_token_at_the_limit_counts_as_an_end(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    *letters, end = [actions_of(env, "a")[0]] * (MAX_NEW - 1) + [task.tokenizer.eos_token_id]
    assert not any(env.step(letter)[2] for letter in letters)
    assert env.step(end)[4]["stop"] == "end"


def test_the_padding_token_is_an_action_like_any_other(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    assert not env.step(task.tokenizer.pad_token_id)[2]


def test_an_end_token_that_doubles_as_padding_stays_visible(make_task: MakeTask, tokenizer: object) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    same = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    env = TextGenerationEnv(make_task(tokenizer=same))
    observation, _ = env.reset(seed=0)
    observation, _, terminated, _, _ = env.step(same.eos_token_id)
    assert terminated and observation[observation != -1][-1] == same.eos_token_id


# Seeds


def test_a_seed_begins_a_stream_and_each_reset_takes_its_next_item(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    for seed in (0, 5):
        keys = [env.reset(seed=seed)[1]["key"], *(env.reset()[1]["key"] for _ in range(20))]
        assert keys == [task.item("train", seed, n).key for n in range(21)]


def test_an_index_jumps_within_the_stream_and_the_next_reset_goes_on_from_there(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    env.reset(seed=5)
    keys = [env.reset(options={"index": 13})[1]["key"], env.reset()[1]["key"]]
    assert keys == [task.item("train", 5, n).key for n in (13, 14)]


def test_without_a_seed_environments_begin_with_streams_of_their_own(task: TextTask) -> None:
    streams = set()
    for _ in range(5):
        env = TextGenerationEnv(task)
        streams.add(tuple(env.reset()[1]["key"] for _ in range(14)))
    assert len(streams) > 1


def test_observations_handed_out_do_not_change_later(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    first, _ = env.reset(seed=0)
    copy = first.copy()
    for action in actions_of(env, "dog"):
        env.step(action)
    assert np.array_equal(first, copy)


# The fast path


@pytest.mark.parametrize("seed", range(6))
def test_stepping_the_sampled_tokens_gives_the_rollouts_texts_and_rewards(
    lm: LanguageModel, task: TextTask, seed: int
) -> None:
    items = [task.item("train", seed, index) for index in range(9)]
    trajectories = rollout(lm, task, items, group=3, seed=seed)
    assert {t.stop for t in trajectories} == {"end", "length"}, "the case of one of them would go untested"
    env = TextGenerationEnv(task)
    env.reset(seed=seed)
    for number, trajectory in enumerate(trajectories):
        observation, began = env.reset(options={"index": number // 3})
        assert began["key"] == trajectory.item.key
        actions = trajectory.tokens_T[trajectory.action_mask_T]
        known = len(trajectory.tokens_T) - len(actions)
        for count, action in enumerate(actions):
            seen = trajectory.tokens_T[: known + count]
            assert np.array_equal(observation[: len(seen)], seen) and (observation[len(seen) :] == -1).all()
            observation, reward, terminated, truncated, info = env.step(action)
            assert terminated == (count + 1 == len(actions)) and not truncated
            if not terminated:
                assert (reward, info) == (0.0, {})
        assert np.array_equal(observation[: known + len(actions)], trajectory.tokens_T)
        assert reward == trajectory.score.reward and info["parts"] == trajectory.score.parts
        assert (info["key"], info["text"], info["stop"]) == (trajectory.item.key, trajectory.text, trajectory.stop)


# Errors


@pytest.mark.parametrize("action", [-1, 10_000])
def test_an_action_out_of_range_is_refused_by_value(task: TextTask, action: int) -> None:
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    with pytest.raises(
        SettingError, match=rf"action: {action} does not work; give tokens in \[0, {env.action_space.n - 1}"
    ):
        env.step(np.int64(action))


@pytest.mark.parametrize("action", [1.0, [1], "a", None])
def test_an_action_that_is_no_integer_is_refused(task: TextTask, action: object) -> None:
    env = TextGenerationEnv(task)
    env.reset(seed=0)
    with pytest.raises(SettingError, match=r"action: .* give one integer for each of the 1 rows"):
        env.step(action)  # type: ignore[arg-type]


def test_a_step_before_the_first_reset_or_after_the_end_asks_for_a_reset(task: TextTask) -> None:
    env = TextGenerationEnv(task)
    with pytest.raises(gym.error.ResetNeeded, match="call reset first"):
        env.step(np.int64(1))
    env.reset(seed=0)
    env.step(task.tokenizer.eos_token_id)
    with pytest.raises(gym.error.ResetNeeded, match="call reset first"):
        env.step(np.int64(1))


def test_an_unknown_split_a_negative_index_and_a_missing_tokenizer_are_refused(
    task: TextTask, tmp_path: object
) -> None:
    with pytest.raises(DataError, match="split: 'dev' does not work"):
        TextGenerationEnv(task, split="dev")
    with pytest.raises(SettingError, match="index: -1 does not work"):
        TextGenerationEnv(task).reset(options={"index": -1})
    with pytest.raises(ModelError, match=r"config\.json"):
        TextGenerationEnv(prompts=["a"], reward=len, tokenizer=str(tmp_path))


def test_a_drawn_prompt_that_is_too_long_is_an_error_at_its_reset(make_task: MakeTask) -> None:
    env = TextGenerationEnv(make_task(prompts=lambda rng: "dog" * 9, split_shares=None, max_prompt_tokens=4))
    with pytest.raises(DataError, match="prompt: 'train/0/0' does not work; it has"):
        env.reset(seed=0)


# The embedded assets: these need rlgkd/assets (python scripts/build_assets.py)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in text_env_ids() if name.startswith("rlgkd/")])
def test_every_registered_environment_passes_both_checkers(name: str) -> None:
    try:
        env = gym.make(name, render_mode="ansi").unwrapped
    except DependencyError as error:
        pytest.skip(str(error))
    env_checker.check_env(env)
    sb3_checker.check_env(gym.make(name).unwrapped)
    vec = gym.make_vec(name, num_envs=2)
    vec.reset(seed=0)
    assert vec.step(vec.action_space.sample())[1].shape == (2,)


def test_grounded_summary_rewards_its_references_more_than_the_references_of_others() -> None:
    env = gym.make("rlgkd/GroundedSummary-v0").unwrapped
    assert isinstance(env, TextGenerationEnv)
    items = [env.task.item("test", 0, index) for index in range(1000)]
    gold, wrong = [item.reference for item in items], [item.reference for item in items[1:] + items[:1]]
    own, others = ([score.reward for score in env.task.score(items, texts)] for texts in (gold, wrong))
    assert np.mean(own) > 0.95 and np.mean(others) < 0.05
    # The oracle, which the learned reward stands for, makes no mistake.
    assert [q["truth"] for q in env.task.quality(items, gold)] == [1.0] * 1000
    assert [q["truth"] for q in env.task.quality(items, wrong)] == [0.0] * 1000


def test_grounded_summarys_references_fit_its_limits_and_satisfy_its_oracle() -> None:
    vec = gym.make_vec("rlgkd/GroundedSummary-v0", num_envs=2)
    assert isinstance(vec, TextVectorEnv)
    items = [vec.task.item(split, 0, index) for split in ("train", "validation", "test") for index in range(40)]
    assert all(len(vec.task.encode_prompt(item)) <= vec.task.max_prompt_tokens for item in items)
    assert all(len(vec.task.encode_completion(item.reference)) <= vec.task.max_new_tokens for item in items)
    assert all(q["truth"] == q["rouge2"] == 1.0 for q in vec.task.quality(items, [item.reference for item in items]))
