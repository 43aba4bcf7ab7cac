"""What an agent logs of the agreement with its teacher: the right sums, and training as without it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd.agents import GRPO, PPO, Distill, Reinforce
from rlgkd.agents.agreement import rewarded_above_others, summed_up
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.lm.fused_loss import fused_logp

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
COLUMNS = {
    "agreement/" + name
    for name in (
        "top20_shared",
        "top20_teacher_mass",
        "top20_student_mass",
        "gap_first_third",
        "gap_middle_third",
        "gap_last_third",
        "gap_p99",
        "end_student",
        "end_teacher",
        "teacher_entropy",
        "teacher_entropy_last_third",
    )
}
BY_REWARD = {"agreement/positive_good", "agreement/positive_bad"}


def agent_of(kind, **settings):
    task = tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")), references=["A B"], max_new_tokens=8)
    models = {"policy": tiny.model(vocabulary=4), "teacher": tiny.model(vocabulary=4, seed=1)}
    return kind(
        env=TextVecEnv(task, num_envs=2), **models, **{"prompts_per_update": 4, "learning_rate": 1e-2} | settings
    )


def rows_of(agent, timesteps: int) -> list[dict[str, float]]:
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(timesteps)
    return rows.rows


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Reinforce, {"alpha": 0.4, "horizon": 0.5}),
        (GRPO, {"alpha": 0.4, "epochs": 2, "ratio": "sequence"}),
        (PPO, {"alpha": 0.4}),
        (Distill, {"student_fraction": 0.5, "token_budget": 40}),
        (Reinforce, {"alpha": 0.0}),
    ],
)
def test_measuring_it_changes_no_bit(kind, settings):
    never, always = (agent_of(kind, agreement_every=every, **settings) for every in (0, 1))
    without, measured = rows_of(never, 100), rows_of(always, 100)
    assert len(measured) > 1
    for ours, theirs in zip(never.student.module.parameters(), always.student.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not COLUMNS & without[0].keys()
    assert all(row.keys() >= COLUMNS for row in measured)

    def others(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{n: value for n, value in row.items() if n.startswith(("train/", "rollout/"))} for row in rows]

    assert others(measured) == others(without)


def test_the_gap_is_that_of_the_models_before_the_step():
    agent = agent_of(Reinforce, alpha=0.4, learning_rate=1e-9)
    (row,) = rows_of(agent, 1)
    assert row.keys() >= COLUMNS | BY_REWARD
    gaps = []
    for part in agent.rollout.micro_batches:
        models = (agent.teacher, agent.student)
        teacher_N, student_N = (fused_logp(lm, lm.states(part.batch), lm.actions(part.batch)) for lm in models)
        row_N = part.batch.action_index_N[0]
        gaps += [(teacher_N - student_N)[row_N == row].detach().numpy() for row in range(len(part.rows))]
    first = np.concatenate([gap[: -(-len(gap) // 3)] for gap in gaps])
    assert row["agreement/gap_first_third"] == pytest.approx(first.mean(), abs=1e-4)
    assert row["agreement/gap_p99"] == pytest.approx(np.quantile(np.abs(np.concatenate(gaps)), 0.99), abs=1e-4)


def test_it_is_measured_again_after_so_many_updates_and_never_without_a_teacher():
    rows = rows_of(agent_of(Reinforce, alpha=0.2, agreement_every=3), 400)
    assert [n for n, row in enumerate(rows) if row.keys() >= COLUMNS] == list(range(0, len(rows), 3))
    alone = Reinforce(
        tiny.model(vocabulary=4),
        TextVecEnv(tiny.WordTask(TOKENIZER, lambda text: float("B" in text), max_new_tokens=4)),
        teacher=None,
        alpha=0.0,
        agreement_every=1,
        prompts_per_update=2,
    )
    (row,) = rows_of(alone, 1)
    assert not any(name.startswith("agreement/") for name in row)


def test_sums_by_hand():
    values = {
        "gap": np.array([[1.0, -2.0, 3.0, 0.0], [-4.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]]),
        "shared": np.array([[1.0, 0.5, 0.0, 9.0], [0.5, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]]),
        "student_end": np.array([[0.1, 0.2, 0.8, 0.0], [0.4, 0.9, 0.9, 0.9], [9.0, 9.0, 9.0, 9.0]]),
    }
    found = summed_up(values, np.array([3, 1, 0]), np.array([1.0, -1.0, 1.0]))
    assert found == pytest.approx(
        {
            "top20_shared": 0.5,
            "gap_first_third": (1 - 4) / 2,
            "gap_middle_third": -2.0,
            "gap_last_third": 3.0,
            "positive_good": 2 / 3,
            "positive_bad": 0.0,
            "end_student": (0.8 + 0.4) / 2,
            "gap_p99": np.quantile([1, 2, 3, 4], 0.99),
        }
    )


def test_texts_are_good_or_bad_next_to_their_prompts_others():
    agent = agent_of(Reinforce, alpha=0.2, group_size=4, prompts_per_update=2)
    agent.learn(1)
    rewards = np.array([t.score.reward for t in agent.trajectories]).reshape(2, 4)
    assert 0 < rewards.mean() < 1
    expected = np.sign(rewards - rewards.mean(axis=1, keepdims=True)).ravel()
    assert rewarded_above_others(agent.trajectories, 4).tolist() == expected.tolist()
    single = np.sign(rewards.ravel() - rewards.mean())
    assert rewarded_above_others(agent.trajectories, 1).tolist() == single.tolist()


def test_equal_rewards_whose_mean_is_rounded_are_neither_good_nor_bad():
    agent = agent_of(Reinforce, alpha=0.2, group_size=3)
    agent.task.reward = lambda text: 0.1
    agent.learn(1)
    assert {t.score.reward for t in agent.trajectories} == {0.1}
    assert not rewarded_above_others(agent.trajectories, 3).any()
