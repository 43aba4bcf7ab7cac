"""Each guard speaks on a training that is made to fail in its way, once, and is silent on one that does not."""

from __future__ import annotations

import logging
import math

import pytest
import tiny

from rlgkd.agents import Distill, Reinforce
from rlgkd.agents.guards import GUARDS, Watch
from rlgkd.envs.sb3 import TextVecEnv

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
FINE = {
    "train/entropy": 1.0,
    "train/divergence": 0.5,
    "train/grad_norm": 1.0,
    "train/gate_right": 0.5,
    "rollout/ended": 0.5,
    "rollout/ep_rew_mean": 0.1,
}
LOG_VOCABULARY = math.log(1000)


@pytest.fixture
def said(caplog):
    """What the sentences begin with that are said of updates."""

    def see(*updates: dict[str, float], fine: dict[str, float] = FINE) -> list[str]:
        caplog.clear()
        watch = Watch(LOG_VOCABULARY)
        for metrics in updates:
            watch.see(fine | metrics)
        return [record.message.partition(":")[0] for record in caplog.records]

    return see


@pytest.mark.parametrize(
    ("metrics", "updates", "name"),
    [
        ({"train/entropy": 0.002}, 3, "entropy"),
        ({"train/entropy": 6.8}, 3, "entropy"),
        ({"train/divergence": 13.0}, 3, "divergence"),
        ({"rollout/ended": 0.0}, 20, "max_new_tokens"),
        ({"train/grad_norm": 0.0}, 6, "gradient"),
        ({"train/gate_right": 0.0}, 5, "gate"),
    ],
)
def test_a_fault_is_reported_once_when_it_has_lasted(said, metrics, updates, name):
    assert said({}, *[metrics] * (updates - 1), {}, *[metrics] * (updates - 1)) == []
    assert said({}, *[metrics] * 50) == [name]


def test_a_gate_for_which_all_texts_are_right_is_reported_only_if_they_were_from_the_beginning(said):
    all_right = {"train/gate_right": 1.0}
    assert said(*[all_right] * 5) == ["gate"] and said(*[all_right] * 4) == []
    assert said({}, *[all_right] * 50) == [], "a task that has been learnt"


def test_every_guard_is_among_them():
    assert len(GUARDS) == 7


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"train/entropy": 0.2, "train/divergence": 4.0},
        {"train/entropy": math.nan, "train/divergence": math.nan, "rollout/ended": math.nan},
    ],
)
def test_other_updates_are_fine(said, metrics):
    assert said({}, *[metrics] * 50) == []
    assert said(*[metrics] * 50, fine={}) == []


def test_of_several_processes_one_speaks(caplog):
    watch = Watch(LOG_VOCABULARY, speaks=False)
    for metrics in ({}, *[{"train/grad_norm": 0.0}] * 9):
        watch.see(FINE | metrics)
    assert not caplog.records


def trained(kind, *, updates: int, max_new_tokens: int = 6, **settings) -> None:
    task = tiny.WordTask(TOKENIZER, lambda text: float(text.count("B")), max_new_tokens=max_new_tokens)
    student, teacher = (tiny.model(vocabulary=4, seed=seed) for seed in (0, 1))
    agent = kind(student, TextVecEnv(task), teacher=teacher, prompts_per_update=8, group_size=4, **settings)
    for _ in range(updates):
        agent.learn(1, reset_num_timesteps=False)


def test_a_training_with_a_far_too_high_learning_rate_is_told_to_collapse(caplog):
    with caplog.at_level(logging.WARNING, "rlgkd.agents.guards"):
        trained(Reinforce, updates=30, alpha=0.0, learning_rate=0.3)
    assert any("the texts collapse into one" in record.message for record in caplog.records)


def test_a_distillation_that_works_hears_nothing(caplog):
    with caplog.at_level(logging.WARNING, "rlgkd.agents.guards"):
        trained(Distill, updates=30, learning_rate=0.003)
    assert not caplog.records
