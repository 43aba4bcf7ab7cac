"""Rewards of single tokens, hints on the way, and rewards in units of their deviation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny
import torch

from rlgkd.agents import GRPO, PPO, Reinforce
from rlgkd.agents.state import TrainingState
from rlgkd.envs import TextTask, rewards
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import RewardError
from rlgkd.ops.running_mean_std import RunningMeanStd

TOKENIZER = tiny.word_tokenizer("A", "B")


def each_a(tokens):
    """1 for each A as it is written, a half for ending."""
    return [[{"A": 1.0, "<end>": 0.5}.get(token, 0.0) for token in row] for row in tokens]


def environment(reward=each_a, **settings) -> TextVecEnv:
    return TextVecEnv(
        TextTask(
            prompts=["A", "B"], reward=reward, tokenizer=TOKENIZER, max_new_tokens=5, max_prompt_tokens=2, **settings
        )
    )


def rolled(kind=Reinforce, reward=each_a, **settings):
    settings = {"alpha": 0.0, "prompts_per_update": 8, "group_size": 4, **settings}
    agent = kind(tiny.model(vocabulary=3, scale=0.1), environment(reward), **settings)
    agent.train = lambda: None
    agent.learn(1)
    return agent


def test_an_action_answers_for_what_comes_after_it_alone():
    agent = rolled()
    advantages_BL = agent.credit(agent.rollout).advantages_BL
    rewards_PG = agent._rewards(agent.rollout).values_BL.sum(1).view(-1, 4)
    for row, t in enumerate(agent.trajectories):
        steps = each_a([[TOKENIZER.decode([token]) for token in t.tokens_T[t.action_mask_T]]])[0]
        others = (rewards_PG[row // 4].sum() - rewards_PG[row // 4, row % 4]) / 3
        for n in range(t.length):
            assert advantages_BL[row, n].item() == pytest.approx(sum(steps[n:]) - others.item())


def test_a_normalised_advantage_is_that_of_the_whole_text():
    agent = rolled(GRPO)
    assert agent.credit(agent.rollout).advantages_BL.shape == (32, 1)


def test_ppo_sees_each_reward_where_it_was_earned():
    agent = rolled(PPO, gae_lambda=0.0, normalise_advantages=False)
    advantages_BL = agent.credit(
        agent.rollout
    ).advantages_BL  # the value head begins at 0, so at lambda 0 they are the rewards
    for row, t in enumerate(agent.trajectories):
        steps = each_a([[TOKENIZER.decode([token]) for token in t.tokens_T[t.action_mask_T]]])[0]
        assert advantages_BL[row, : t.length].tolist() == pytest.approx(steps)


def test_hints_change_the_sum_by_a_constant_and_reach_their_action():
    shaped = rewards.Shaped(each_a, lambda texts: [float(text.count("B")) + 0.25 for text in texts])
    plain, hinted = rolled(), rolled(reward=shaped)
    for without, with_hints in zip(plain.trajectories, hinted.trajectories, strict=True):
        assert without.tokens_T.tolist() == with_hints.tokens_T.tolist()
        assert with_hints.score.reward == pytest.approx(without.score.reward - 0.25)
        words = [TOKENIZER.decode([token]) for token in without.tokens_T[without.action_mask_T]]
        for word, step in zip(words[:-1], with_hints.score.steps[:-1], strict=True):
            assert step == float(word == "B")


def test_a_sample_that_fails_within_a_shaped_reward_fails_alone():
    def mostly(completions):
        return [ValueError("no") if n == 1 else 1.0 for n in range(len(completions))]

    agent = rolled(reward=rewards.Shaped(mostly, lambda texts: [0.5] * len(texts)))
    failed = [math.isnan(t.score.reward) for t in agent.trajectories]
    assert failed == [n == 1 for n in range(32)]


def test_a_reward_of_single_samples_may_tell_its_steps_too():
    agent = rolled(reward=lambda completion, tokens: [0.25] * len(tokens))
    assert all(t.score.steps == (0.25,) * t.length for t in agent.trajectories)


def test_counters_from_before_there_were_running_rewards_are_taken():
    agent = rolled()
    old = {"timesteps": 3, "updates": 2, "cursor": 4}
    agent.state = TrainingState.from_json(old)
    assert agent.num_timesteps == 3 and agent.state.next_prompt == 4
    assert agent.state.rewards == RunningMeanStd()


def test_a_sum_of_rewards_sums_their_steps():
    both = rewards.Weighted({"each": (2.0, each_a), "brief": (1.0, lambda completions: [1.0] * len(completions))})
    for t in rolled(reward=both).trajectories:
        words = [TOKENIZER.decode([token]) for token in t.tokens_T[t.action_mask_T]]
        steps = np.array(each_a([words])[0]) * 2
        steps[-1] += 1
        assert t.score.steps == pytest.approx(steps.tolist())
        assert t.score.parts["brief"] == 1.0 and t.score.reward == pytest.approx(steps.sum())


@pytest.mark.parametrize(
    ("reward", "message"),
    [(lambda tokens: [[1.0]] * len(tokens), "steps for"), (lambda completions: [[1.0]] * len(completions), "tokens")],
)
def test_steps_that_do_not_fit_are_a_failure(reward, message):
    with pytest.raises(RewardError, match=message):
        rolled(reward=reward, prompts_per_update=64)


def test_running_moments_are_those_of_all_values():
    rng = np.random.default_rng(0)
    values, running = rng.normal(3.0, 2.0, 200), RunningMeanStd()
    for part in np.split(values, (1, 5, 5, 70)):
        running = running.updated([*part, math.nan], [True] * len(part) + [False])
    assert running.mean == pytest.approx(values.mean()) and running.std == pytest.approx(values.std(ddof=1))
    assert RunningMeanStd().updated([2.0, 2.0], [True, True]).std == 1.0
    rounded = RunningMeanStd()
    for _ in range(3):
        rounded = rounded.updated([0.1] * 3, [True] * 3)
    assert rounded.std == 1.0, "equal values that leave rounding"


def test_rewards_in_units_of_their_deviation_do_not_depend_on_their_scale():
    def many(completions):
        return [1000.0 * text.count("A") for text in completions]

    def few(completions):
        return [float(text.count("A")) for text in completions]

    agents = []
    for reward in (many, few):
        agent = Reinforce(
            tiny.model(vocabulary=3, scale=0.1),
            environment(reward),
            alpha=0.0,
            prompts_per_update=8,
            group_size=4,
            learning_rate=0.01,
            normalise_rewards=True,
        )
        agent.learn(600)
        agents.append(agent)
    for one, other in zip(*(agent.student.module.parameters() for agent in agents), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert agents[0].state.rewards.std == pytest.approx(1000 * agents[1].state.rewards.std)
    other = agents[1]
    other.state = TrainingState.from_json(json.loads(json.dumps(agents[0].state.to_json())))
    assert other.state.rewards == agents[0].state.rewards


def told(caplog, reward, **settings) -> list[str]:
    caplog.clear()
    settings = {"alpha": 0.0, "prompts_per_update": 4, "group_size": 2, **settings}
    env = environment(reward, max_failed_rewards=1.0)
    agent = Reinforce(tiny.model(vocabulary=3, scale=0.1), env, teacher=tiny.model(vocabulary=3), **settings)
    agent.learn(160)
    assert agent.state.updates > 5
    return [record.getMessage() for record in caplog.records]


def test_a_reward_that_is_the_same_for_all_samples_is_pointed_out_once(caplog):
    (line,) = told(caplog, lambda completions: [0.1] * len(completions))
    assert line.startswith("reward: the same, 0.100, for all 40 samples so far: nothing to learn from; look at")


@pytest.mark.parametrize(
    ("reward", "settings"),
    [
        (lambda completions: [float("A" in text) for text in completions], {}),
        (lambda completions: [0.0] * len(completions), {"alpha": 1.0}),
        (lambda tokens: [[1.0, *[0.0] * (len(row) - 1)] for row in tokens], {}),
        (lambda completions: [math.nan] * len(completions), {}),
    ],
    ids=["differs", "has no weight", "differs within a text", "has failed"],
)
def test_a_reward_is_not_said_to_be_the_same_where_it(caplog, reward, settings):
    assert not [line for line in told(caplog, reward, **settings) if "the same" in line]
