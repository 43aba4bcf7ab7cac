"""The teacher's own answers, for a gate that asks how good they are: each prompt once, by its own teacher."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny
from rank_cases import WORDS, learner, share_of_a, talk

from rlgkd.agents.probing import TeacherAnswers
from rlgkd.rollout import rollout
from rlgkd.teachers import RoutedTeachers
from rlgkd.types import Item


@pytest.fixture
def asked() -> tuple[Callable[..., list[float]], list[str]]:
    """A reward that keeps what it was asked for, and the texts that it was asked for."""
    texts: list[str] = []

    def reward(completions: list[str]) -> list[float]:
        texts.extend(completions)
        return share_of_a(completions)

    return reward, texts


def test_an_answer_earns_what_the_teacher_earns_and_each_prompt_is_answered_once(asked) -> None:
    reward, texts = asked
    task, teacher = talk(reward=reward), tiny.model(vocabulary=len(WORDS) + 1, seed=5)
    agent = learner(gate="tgopd", teacher=teacher, teacher_probes=4)
    items = [task.item("train", 0, index) for index in range(3)]
    answers = TeacherAnswers(agent.teacher, task, number=4, seed=0)
    rewards = answers.rewards([*items, items[0]])
    assert len(texts) == 12 and rewards[3] == rewards[0]
    each = rollout(agent.teacher, task, items, group=4, seed=0)
    expected = [sum(t.score.reward for t in each[4 * n : 4 * n + 4]) / 4 for n in range(3)]
    assert rewards[:3] == pytest.approx(expected) and len(set(rewards)) > 1
    del texts[:]
    assert answers.rewards(items[::-1]) == rewards[2::-1] and not texts


def test_a_reward_that_fails_for_all_answers_trusts_nobody() -> None:
    task = talk(reward=lambda completions: [None for _ in completions])
    agent = learner(gate="tgopd")
    (reward,) = TeacherAnswers(agent.teacher, task, number=2, seed=0).rewards([task.item("train", 0, 0)])
    assert reward != reward


def test_each_item_is_answered_by_its_own_teacher() -> None:
    task = talk()
    models = {
        name: learner(teacher=tiny.model(vocabulary=len(WORDS) + 1, seed=seed)).teacher
        for name, seed in (("one", 5), ("two", 6))
    }
    items = [
        Item(key=f"{n}", prompt=task.item("train", 0, n).prompt, columns={"who": who})
        for n, who in enumerate(("one", "two", "one"))
    ]
    routed = TeacherAnswers(RoutedTeachers(models, "who"), task, number=3, seed=0).rewards(items)
    alone = [TeacherAnswers(models[item.columns["who"]], task, number=3, seed=0).rewards([item])[0] for item in items]
    assert routed == alone


def test_a_text_has_one_term_or_the_other_as_the_teacher_answers_its_prompt() -> None:
    agent = learner(gate="tgopd", trusted_from=0.2)
    agent.learn(1)
    credit = agent.gated(agent.credit(agent.rollout))
    rewards = agent.teacher_answers.rewards([t.item for t in agent.trajectories])
    for t, reward, policy_L, divergence_L in zip(
        agent.trajectories, rewards, credit.policy_gate_BL, credit.divergence_gate_BL, strict=True
    ):
        trusted = float(reward >= 0.2)
        assert policy_L[: t.length].eq(1 - trusted).all() and divergence_L[: t.length].eq(trusted).all()
    assert {reward >= 0.2 for reward in rewards} == {True, False}
