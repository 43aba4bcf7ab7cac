"""Alpha means the same in every agent and at every length: beta is alpha / (1 - alpha) where reductions agree.

Guards against a default that lets the divergence weigh by the length of texts, against a measurement that changes what
is measured, and against norms of the two terms that are not those of their gradients.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd.agents import GRPO, PPO, RLOO, Distill, Reinforce
from rlgkd.agents.old_settings import upgraded
from rlgkd.agents.update import term_weights
from rlgkd.envs.sb3 import TextVecEnv

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
EQUATION_5 = {"policy_reduction": "sequence_sum", "divergence_reduction": "sequence_mean"}
MIXING = [Reinforce, RLOO, GRPO, PPO]


def agent_of(kind, *, max_new_tokens: int = 8, **settings):
    """An agent on texts of one to `max_new_tokens` words."""
    task = tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")), max_new_tokens=max_new_tokens)
    models = {"policy": tiny.model(vocabulary=4), "teacher": tiny.model(vocabulary=4, seed=1)}
    return kind(
        env=TextVecEnv(task, num_envs=2), **models, **{"prompts_per_update": 4, "learning_rate": 1e-2} | settings
    )


def rows_of(agent, timesteps: int) -> list[dict[str, float]]:
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(timesteps)
    return rows.rows


def weights(agent) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in agent.student.module.parameters()]


@pytest.mark.parametrize("kind", MIXING)
def test_at_one_alpha_every_agent_has_the_same_beta_at_every_token(kind):
    agent = agent_of(kind, alpha=0.2)
    (row,) = rows_of(agent, 1)
    assert len({t.length for t in agent.trajectories}) > 1
    assert row["train/beta"] == pytest.approx(0.25)
    everything_valid = torch.ones(len(agent.trajectories), dtype=torch.bool)
    policy_B, divergence_B = term_weights(agent.objective, agent.trajectories, everything_valid, 8)
    torch.testing.assert_close(policy_B, divergence_B)


def test_in_the_reward_it_is_the_same_beta():
    settings = {"combination": "in_reward", "estimator": "sampled"}
    assert rows_of(agent_of(Reinforce, alpha=0.2, **settings), 1)[0]["train/beta"] == pytest.approx(0.25)


def test_equation_5_to_the_letter_divides_beta_by_the_length_of_texts():
    agent = agent_of(Reinforce, alpha=0.2, **EQUATION_5)
    (row,) = rows_of(agent, 1)
    length = np.mean([t.length for t in agent.trajectories])
    assert row["train/beta"] == pytest.approx(0.25 / length)


def test_distillation_alone_has_no_beta_and_no_norms_of_two_terms():
    (row,) = rows_of(agent_of(Distill), 1)
    assert not {"train/beta", "train/policy_grad_norm", "train/divergence_grad_norm"} & row.keys()


@pytest.mark.parametrize("kind", MIXING)
def test_measuring_both_gradients_changes_no_bit(kind):
    never, always = (agent_of(kind, alpha=0.4, horizon=0.5, gradient_norms_every=every) for every in (0, 1))
    unmeasured, measured = rows_of(never, 100), rows_of(always, 100)
    assert len(measured) > 1
    for a, b in zip(weights(never), weights(always), strict=True):
        assert torch.equal(a, b)
    norms = {"train/policy_grad_norm", "train/divergence_grad_norm"}
    ours = {name for name in unmeasured[0] if name.startswith(("train/", "rollout/"))}
    assert not ours & norms
    assert all(norms <= row.keys() for row in measured)
    assert [{n: row[n] for n in ours} for row in measured] == [{n: row[n] for n in ours} for row in unmeasured]


def test_the_norms_are_those_of_the_two_terms_alone_with_their_weights():
    (both,) = rows_of(agent_of(Reinforce, alpha=0.2), 1)
    (reward,) = rows_of(agent_of(Reinforce, alpha=0.0), 1)
    (divergence,) = rows_of(agent_of(Distill, reduction="constant"), 1)
    assert both["train/policy_grad_norm"] == pytest.approx(0.8 * reward["train/grad_norm"])
    assert both["train/divergence_grad_norm"] == pytest.approx(0.2 * divergence["train/grad_norm"])


def ratio_of_norms(kind, most_tokens: int, **settings) -> float:
    """Mean of policy over divergence term's gradient norm, of texts that end with probability 1/201 at each token."""
    words = tiny.word_tokenizer(*(f"W{number}" for number in range(200)))
    task = tiny.WordTask(words, lambda text: float(text[-1:] in "13579"), max_new_tokens=most_tokens)
    models = {"policy": tiny.model(vocabulary=201), "teacher": tiny.model(vocabulary=201, seed=1)}
    still = {"alpha": 0.5, "prompts_per_update": 4, "group_size": 4, "learning_rate": 1e-9, "gradient_norms_every": 1}
    rows = rows_of(kind(env=TextVecEnv(task, num_envs=2), **models, **still, **settings), 96 * most_tokens)
    return float(np.mean([row["train/policy_grad_norm"] / row["train/divergence_grad_norm"] for row in rows]))


@pytest.mark.parametrize("kind", [Reinforce, GRPO])
def test_one_alpha_holds_for_texts_four_times_as_long_and_not_by_equation_5_to_the_letter(kind):
    """docs/choosing-alpha.md has the same for SmolLM2 from 16 to 512 tokens."""
    short, long = (ratio_of_norms(kind, tokens) for tokens in (12, 48))
    assert 0.5 < long / short < 1.25
    short, long = (ratio_of_norms(kind, tokens, **EQUATION_5) for tokens in (12, 48))
    assert long / short > 2


def test_a_term_without_a_teacher_is_not_in_the_policy_terms_norm():
    both = agent_of(Reinforce, alpha=0.2, estimator="fixed_negative", gate="improbable")
    (row,), (reward,) = rows_of(both, 1), rows_of(agent_of(Reinforce, alpha=0.0), 1)
    assert row["train/policy_grad_norm"] == pytest.approx(0.8 * reward["train/grad_norm"])
    assert row["train/divergence_grad_norm"] > 0


def test_they_are_measured_again_after_so_many_updates():
    rows = rows_of(agent_of(Reinforce, alpha=0.2, gradient_norms_every=3), 400)
    measured = [n for n, row in enumerate(rows) if "train/policy_grad_norm" in row]
    assert measured == list(range(0, len(rows), 3))
    assert len(measured) > 1


def test_it_warns_once_where_beta_hangs_on_the_length_and_texts_are_long(caplog):
    with caplog.at_level(logging.WARNING):
        agent_of(Reinforce, alpha=0.2, max_new_tokens=48, policy_reduction="sequence_sum").learn(300)
        (warning,) = [record.getMessage() for record in caplog.records if "reduction" in record.getMessage()]
        assert warning.startswith("alpha: 0.2 is a beta of 0.0052 at texts of this length, and of 0.25")
        caplog.clear()
        agent_of(Reinforce, alpha=0.2, max_new_tokens=48).learn(300)
        agent_of(Reinforce, alpha=0.2, **EQUATION_5).learn(300)  # of short texts
    assert not [record for record in caplog.records if "reduction" in record.getMessage()]


@pytest.mark.parametrize(
    ("kind", "own"),
    [("Reinforce", "sequence_sum"), ("RLOO", "sequence_sum"), ("GRPO", "sequence_mean"), ("PPO", "token_mean")],
)
def test_a_file_of_all_settings_from_before_keeps_its_reductions(kind, own):
    old = {"alpha": 0.3, "policy_reduction": None, "divergence_reduction": "sequence_mean"}
    assert upgraded(old, kind) == old | {"policy_reduction": own}
    chosen = old | {"policy_reduction": "constant"}
    assert upgraded(chosen, kind) == chosen
    today = old | {"reduction": "constant"}
    assert upgraded(today, kind) == today
    by_hand = {"policy_reduction": "constant"}
    assert upgraded(by_hand, kind) == by_hand
