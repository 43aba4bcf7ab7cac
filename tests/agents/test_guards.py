"""Each guard speaks on a training that is made to fail in its way, once, and is silent on one that does not."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rlgkd.agents import Distill, Reinforce
from rlgkd.agents.guards import GUARDS, Greatest
from rlgkd.agents.watch import Seen, Watch
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.scripts.runs.overfitting import TrainingRewards, warn
from rlgkd.statistics import Interval
from rlgkd.types import Source

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
FINE = {
    "train/entropy": 1.0,
    "train/divergence": 0.5,
    "train/grad_norm": 1.0,
    "train/alpha": 0.5,
    "train/mismatch": 1e-6,
    "train/policy_grad_norm": 1.0,
    "train/divergence_grad_norm": 0.5,
    "agreement/gap_p99": 3.0,
    "rollout/ended": 0.5,
    "rollout/ep_rew_mean": 0.5,
    "rollout/ep_len_mean": 16.0,
    "rollout/repeated": 0.05,
    "train/gate_right": 0.5,
    "rollout/student": 1.0,
}
GREATEST = Greatest(entropy=math.log(1000))


@pytest.fixture
def said(caplog):
    """What the sentences begin with that are said of updates."""

    def see(*updates: dict[str, float], fine: dict[str, float] = FINE) -> list[str]:
        caplog.clear()
        watch = Watch(GREATEST)
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
        ({"train/entropy": 1.4, "train/divergence": 0.8}, 5, "learning_rate"),
        ({"rollout/ep_rew_mean": 0.8, "rollout/ep_len_mean": 8.0}, 10, "reward"),
        ({"rollout/ep_rew_mean": 0.8, "rollout/ep_len_mean": 40.0}, 10, "reward"),
        ({"rollout/ep_rew_mean": 0.8, "rollout/repeated": 0.5}, 5, "reward"),
        ({"agreement/gap_p99": 30.0}, 2, "gap"),
        ({"train/policy_grad_norm": 99.0}, 2, "alpha"),
        ({"train/divergence_grad_norm": 99.0}, 2, "alpha"),
        ({"train/mismatch": 0.3}, 3, "mismatch"),
    ],
)
def test_a_fault_is_reported_once_when_it_has_lasted(said, metrics, updates, name):
    first = [{}] * 5
    assert said(*first, *[metrics] * (updates - 1), {}, *[metrics] * (updates - 1)) == []
    assert said(*first, *[metrics] * 50) == [name]


def test_a_gate_for_which_all_texts_are_right_is_reported_only_if_they_were_from_the_beginning(said):
    all_right = {"train/gate_right": 1.0}
    assert said(*[all_right] * 5) == ["gate"] and said(*[all_right] * 4) == []
    assert said({}, *[all_right] * 50) == [], "a task that has been learnt"


def test_a_first_update_that_was_low_by_chance_is_no_learning_rate(said):
    """As in runs of the frontier's comparison, whose entropy of the first update was from 0.44 to 0.60."""
    later = {"train/entropy": 1.4, "train/divergence": 0.8}
    assert said({}, *[later] * 50) == []
    broken = {"train/entropy": 2.0, "train/divergence": 2.0}
    assert said({}, *[broken] * 5) == ["learning_rate"], "a run that breaks at once is not compared with itself"
    assert said({}, *[later] * 4, *[broken] * 5) == ["learning_rate"]


def test_a_student_far_from_its_teacher_is_told_by_a_divergence_that_has_a_bound():
    """As with recipe gkd at a learning rate of 0.03: a JSD of 0.023 went to 0.6, of at most ln 2."""

    def said(greatest: float, *divergences: float) -> list[str]:
        watch = Watch(Greatest(entropy=math.log(1000), divergence=greatest))
        for divergence in divergences:
            watch.see(FINE | {"train/divergence": divergence})
        return watch.seen.reported

    assert said(math.log(2), 0.02, 0.6, 0.6, 0.6) == ["divergence"] == said(math.log(2), 0.3, 0.6, 0.6, 0.6)
    assert said(math.log(2), 0.02, 0.3, 0.3, 0.3) == [] == said(math.log(2), 0.6, 0.64, 0.64, 0.64)
    assert said(math.inf, 0.02, 0.6, 0.6, 0.6) == []


def test_the_bound_is_that_of_the_divergence_in_use():
    given = {"updates": 1, "divergence": "jsd", "beta": 0.5}
    agent = learner(Distill, **given)
    assert agent.watch.greatest.divergence == pytest.approx(math.log(2), rel=1e-5)
    assert agent.watch.greatest.entropy == math.log(agent.student.vocabulary)
    agent.reconfigure(agent.Config(**{**agent.config.flat(), "divergence": "total_variation", "beta": None}))
    assert agent.watch.greatest.divergence == 1.0
    assert learner(Distill, updates=1).watch.greatest.divergence > 1e3


def test_what_was_seen_goes_through_json():
    fault = {"train/divergence": 13.0}
    whole, parts = Watch(GREATEST), Watch(GREATEST)
    for number in range(9):
        for watch in (whole, parts):
            watch.see(FINE | (fault if number > 3 else {"rollout/reward/part": math.nan}))
        parts = Watch(GREATEST, seen=Seen.from_json(json.loads(json.dumps(parts.seen.to_json()))))
    assert parts == whole and len(whole.messages) == 1
    numbers: list[dict[str, object]] = [{"first": ["x"]}, {"first": [{"a": "b"}]}, {"streaks": [1]}]
    for wrong in (*numbers, {"reported": "ab"}, {"messages": [1]}, {"x": 1}):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            Seen.from_json(wrong)


def test_references_between_the_students_texts_end_no_streak_and_are_not_compared_with(said):
    """As in recipe docstring-smollm2, with a quarter of its updates on references, which end where its texts do not."""
    references = {"rollout/student": 0.0, "rollout/ended": 1.0, "rollout/ep_rew_mean": 0.1, "rollout/ep_len_mean": 60.0}
    never = {"rollout/ended": 0.0}
    assert said(*[references, never] * 19) == []
    assert said(*[references, never] * 20) == ["max_new_tokens"]
    assert said(*[references] * 50) == []
    assert said(references, *[references | {"train/entropy": 0.002}] * 50) == [], "references are learned by heart"
    assert said(*[references] * 9, *[{}] * 50) == [], "the reward of references is no beginning"
    shorter = {"rollout/ep_rew_mean": 0.8, "rollout/ep_len_mean": 8.0}
    assert said(*[references] * 9, {}, *[references, shorter] * 10) == ["reward"]


def test_every_guard_is_among_them():
    assert len(GUARDS) == 13 == len({guard.name for guard in GUARDS})


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"train/entropy": 0.2, "train/divergence": 4.0},
        {"rollout/ep_rew_mean": 0.4, "rollout/ep_len_mean": 8.0, "rollout/repeated": 0.6},  # no reward pays for it
        {"rollout/ep_rew_mean": 0.9, "rollout/ep_len_mean": 8.0, "train/alpha": 1.0},  # nor is it trained on
        {"train/policy_grad_norm": 99.0, "train/divergence": 0.0},  # the teacher is the start
        {"train/entropy": math.nan, "train/divergence": math.nan, "rollout/ended": math.nan},
    ],
)
def test_other_updates_are_fine(said, metrics):
    assert said({}, *[metrics] * 50) == []
    assert said(*[metrics] * 50, fine={}) == []


def test_what_is_measured_at_some_updates_is_compared_at_these(said):
    """An update between two measurements says nothing, and does not end a streak."""
    heavy, unmeasured = {"agreement/gap_p99": 30.0}, {"agreement/gap_p99": math.nan}
    assert said(heavy, unmeasured, unmeasured) == []
    assert said(heavy, unmeasured, unmeasured, heavy) == ["gap"]
    assert said(heavy, {}, unmeasured, heavy) == []


def test_of_several_processes_one_speaks(caplog):
    watch = Watch(GREATEST, speaks=False)
    for metrics in ({}, *[{"train/grad_norm": 0.0}] * 9):
        watch.see(FINE | metrics)
    assert not caplog.records


def learner(kind, reward=lambda text: float(text.count("B")), *, updates: int, max_new_tokens: int = 6, **settings):
    """A small student after its training, with a callback if one is among the settings."""
    callback = settings.pop("callback", None)
    task = tiny.WordTask(TOKENIZER, reward, max_new_tokens=max_new_tokens)
    student, teacher = (tiny.model(vocabulary=4, seed=seed) for seed in (0, 1))
    agent = kind(student, TextVecEnv(task), teacher=teacher, prompts_per_update=8, group_size=4, **settings)
    for _ in range(updates):
        agent.learn(1, callback, reset_num_timesteps=False)
    return agent


def trained(*arguments, **settings) -> list[str]:
    """What guards said of it."""
    return learner(*arguments, **settings).watch.messages


class ChangesTheModel(BaseCallback):
    """Puts noise on the weights after texts were sampled."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        generator = torch.Generator().manual_seed(self.model.state.updates)
        with torch.no_grad():
            for parameter in self.model.student.module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("the texts collapse into one", {"updates": 30, "alpha": 0.0, "learning_rate": 0.3}),
        (
            "while texts went from",
            {
                "reward": lambda text: float(len(text.split())),
                "updates": 30,
                "alpha": 0.0,
                "learning_rate": 0.03,
                "max_new_tokens": 16,
            },
        ),
        (
            "while texts repeat themselves",
            {
                "reward": lambda text: float(text.count("B")),
                "updates": 30,
                "alpha": 0.0,
                "learning_rate": 0.03,
                "max_new_tokens": 16,
            },
        ),
        (
            "no text of 20 updates ended by itself",
            {
                "reward": lambda text: float(len(text.split()) == 3),
                "updates": 40,
                "alpha": 0.0,
                "learning_rate": 0.1,
                "max_new_tokens": 3,
            },
        ),
        ("few tokens decide", {"updates": 2, "teacher_temperature": 0.01, "agreement_every": 1}),
        ("one of them says nothing", {"updates": 2, "alpha": 1e-4, "gradient_norms_every": 1}),
        ("did not write these texts", {"updates": 3, "callback": ChangesTheModel()}),
        ("nothing is learnt", {"reward": lambda text: float("Z" in text), "updates": 6, "alpha": 0.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_training_that_is_made_to_fail_hears_of_it(message, given):
    said = trained(Reinforce, **given)
    assert any(message in one for one in said) or (
        message == "nothing is learnt" and "nothing to learn from" in said[0]
    )


def test_a_distillation_that_works_hears_nothing(caplog):
    with caplog.at_level(logging.WARNING, "rlgkd.agents.watch"):
        assert trained(Distill, updates=30, learning_rate=0.003, agreement_every=1) == []
    assert not caplog.records


def test_a_mixture_that_works_hears_nothing():
    given = {"alpha": 0.5, "learning_rate": 0.003, "agreement_every": 1, "gradient_norms_every": 5}
    assert trained(Reinforce, lambda text: float(text.startswith("B")), updates=30, **given) == []


def rewards_of(*parts: tuple[float, int]) -> TrainingRewards:
    """So many prompts of these mean rewards, of four texts each, and a text that the student did not write."""

    def text(reward: float, source: Source = Source.STUDENT) -> SimpleNamespace:
        return SimpleNamespace(score=SimpleNamespace(reward=reward), source=source, item=SimpleNamespace(key="a"))

    found = TrainingRewards()
    for mean, number in parts:
        for spread in (0.1, -0.1) * (number // 2):
            own = [text(mean + spread + within) for within in (0.4, -0.4, 0.4, -0.4)]
            found.add([*own, text(math.nan), text(-9.0, Source.DATA)])
    return found


def test_prompts_that_are_learnt_by_heart_are_told_by_held_out_ones():
    """The gap to the reward of training has grown by a fifth of it since the first updates."""
    watch, begun = Watch(GREATEST), Interval(0.5, 0.4, 0.6)
    learnt = TrainingRewards.from_json(json.loads(json.dumps(rewards_of((0.5, 64), (0.9, 64)).to_json())))
    assert (learnt.first.mean, learnt.recent.mean) == pytest.approx((0.5, 0.9))
    assert learnt.recent.high - 0.9 == pytest.approx(1.96 * 0.1 / 63**0.5), "texts of one prompt are no more prompts"
    for training, first, held_out in (
        (learnt, begun, Interval(0.8, 0.75, 0.85)),  # both rise
        (learnt, begun, Interval(0.6, 0.3, 0.9)),
        (learnt, begun, Interval()),
        (learnt, Interval(), Interval(0.6, 0.5, 0.7)),
        (rewards_of((0.5, 8), (0.9, 6)), begun, Interval(0.1, 0.0, 0.2)),  # too few
        # Prompts that were hard from the beginning, as 100 of GroundedSummary's can be.
        (rewards_of((0.65, 64), (0.68, 64)), Interval(0.45, 0.35, 0.55), Interval(0.47, 0.37, 0.57)),
        (rewards_of((0.6, 64), (0.5, 64)), begun, Interval(0.2, 0.1, 0.3)),  # whose reward falls learns nothing
    ):
        training.held_out = first
        warn(watch, training, held_out, "64 validation prompts")
    assert watch.messages == []
    learnt.held_out = begun
    warn(watch, learnt, Interval(0.6, 0.5, 0.7), "64 validation prompts")
    assert watch.messages[0].startswith(
        "held-out: the reward went from 0.5 to 0.6 (0.5 to 0.7) on 64 validation prompts and from 0.5 to 0.9 on those"
    )
