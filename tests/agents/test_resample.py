"""`drop_even_groups: resample`: other prompts for groups without spread, counted, in order, resumable."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd import checkpoint
from rlgkd.agents import GRPO, Reinforce
from rlgkd.agents.state import TrainingState
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import SettingError
from rlgkd.types import Score

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
ONE_PROMPT_IN_THREE = ("A", "B", "C")
"""Prompts; a task of `earns` pays after the first alone, so the groups of the others are even."""


def agent_of(kind=Reinforce, *, pays=lambda item, text: float(text.startswith("B")) * (item == "A"), **given):
    class Task(tiny.WordTask):
        def score(self, items, completions, **more):
            return [Score(reward=pays(item.prompt, text)) for item, text in zip(items, completions, strict=True)]

    task = Task(TOKENIZER, lambda text: 0.0, prompts=ONE_PROMPT_IN_THREE, max_new_tokens=2)
    settings = {
        "alpha": 0.0,
        "prompts_per_update": 2,
        "group_size": 12,
        "learning_rate": 1e-2,
        "seed": 3,
        "drop_even_groups": "resample",
        **given,
    }
    agent = kind(tiny.model(vocabulary=4, scale=0.1), TextVecEnv(task, num_envs=2), **settings)
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


def prompts(agent) -> list[str]:
    return [t.item.prompt for t in agent.trajectories[::12]]


def rewards(agent) -> np.ndarray:
    return np.array([t.score.reward for t in agent.trajectories]).reshape(-1, 12)


def test_even_groups_are_replaced_by_the_next_prompts_of_the_stream() -> None:
    agent = agent_of(resample_rounds=9)
    agent.learn(1)
    assert prompts(agent) == ["A", "A"] and (np.ptp(rewards(agent), axis=1) > 0).all()
    # A B, then C for the one that is missing, then A: four prompts and their tokens, two of them discarded.
    assert agent.state.next_prompt == 4
    discarded = agent.rollout.discarded
    assert [t.item.prompt for t in discarded[::12]] == ["B", "C"]
    tokens = sum(t.length for t in [*agent.trajectories, *discarded])
    assert agent.num_timesteps == agent.rollout.tokens == tokens
    (row,) = agent.rows.rows
    assert row["rollout/discarded"] == pytest.approx(sum(t.length for t in discarded) / tokens)
    assert row["rollout/ep_rew_mean"] == pytest.approx(rewards(agent).sum() / 48)  # of all that was sampled
    assert agent.state.rewards.count == 48


def test_within_the_budget() -> None:
    agent = agent_of(resample_rounds=1)
    agent.learn(1)
    assert prompts(agent) == ["A"] and agent.state.next_prompt == 3
    nothing = agent_of(resample_rounds=2, pays=lambda item, text: 1.0)
    before = [p.clone() for p in nothing.student.module.parameters()]
    nothing.learn(1)
    assert prompts(nothing) == ["A", "B"] and nothing.state.next_prompt == 6 and len(nothing.rollout.discarded) == 48
    assert all(torch.equal(p, old) for p, old in zip(nothing.student.module.parameters(), before, strict=True))


def test_where_every_group_has_spread_it_is_the_plain_run_to_the_bit() -> None:
    def pays(item, text):
        return float(text.startswith("B"))

    plain, resampling = agent_of(pays=pays, drop_even_groups=True), agent_of(pays=pays)
    for agent in (plain, resampling):
        agent.learn(200)
        for row in agent.rows.rows:
            row.pop("rollout/discarded", None)
    names = [name for name in plain.rows.rows[0] if not name.startswith("time/")]
    assert resampling.state.next_prompt == plain.state.next_prompt > 4
    assert [[row[n] for n in names] for row in plain.rows.rows] == [
        [row[n] for n in names] for row in resampling.rows.rows
    ]


def test_discarded_groups_are_distilled_if_asked() -> None:
    teacher = tiny.model(vocabulary=4, seed=1, scale=0.1)
    agent = agent_of(GRPO, teacher=teacher, alpha=0.5, distil_even_groups=True, resample_rounds=9)
    agent.learn(1)
    assert prompts(agent) == ["A", "B", "C", "A"] and not agent.rollout.discarded
    credit = agent.credit(agent.rollout)
    assert credit.valid_B.view(-1, 12).all(1).tolist() == [True, False, False, True]
    assert np.isfinite(agent.rows.rows[0]["train/divergence"])


def test_off_policy_prompts_of_the_same_update_stay() -> None:
    teacher = tiny.model(vocabulary=4, seed=1, scale=0.1)
    agent = agent_of(
        teacher=teacher,
        alpha=0.5,
        student_fraction=0.5,
        mixture="prompt",
        off_policy="teacher",
        prompts_per_update=6,
        resample_rounds=9,
    )
    agent.learn(1)
    wanted = int((agent.collector._coins(0, 6) < 0.5).sum())
    sources = [str(t.source) for t in agent.trajectories[::12]]
    assert 0 < wanted < 6 and sources == ["student"] * wanted + ["teacher"] * (6 - wanted)
    assert agent.rollout.student_fraction == 0.5


def test_training_that_goes_on_from_a_checkpoint_is_that_which_never_stopped(tmp_path) -> None:
    agent, other = agent_of(), agent_of()
    agent.learn(150)
    checkpoint.save(
        tmp_path / "step", model=agent.modules, optimizer=agent.policy.optimizer, state=agent.state.to_json()
    )
    state = checkpoint.load(tmp_path / "step", model=other.modules, optimizer=other.policy.optimizer)
    other.state = TrainingState.from_json(state)
    done = len(agent.rows.rows)
    for one in (agent, other):
        one.learn(150, reset_num_timesteps=False)
    names = [name for name in agent.rows.rows[0] if not name.startswith("time/")]
    rows = [[[row[n] for n in names] for row in part] for part in (agent.rows.rows[done:], other.rows.rows)]
    assert rows[0] and rows[0] == rows[1] and agent.state == other.state


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"group_size": 1, "advantage": "raw"}, "drop_even_groups.* set group_size above 1"),
        ({"drop_even_groups": True, "resample_rounds": 2}, "resample_rounds.* set drop_even_groups to resample"),
        ({"drop_even_groups": True, "distil_even_groups": True}, "distil_even_groups.* set drop_even_groups"),
        ({"distil_even_groups": True}, "distil_even_groups.* alpha is 0"),
        ({"drop_even_groups": "again"}, "drop_even_groups"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, match) -> None:
    with pytest.raises(SettingError, match=match):
        agent_of(**given)
