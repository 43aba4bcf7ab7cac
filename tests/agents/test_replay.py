"""A replay buffer: texts of earlier updates as they were sampled, for the divergence or for both terms."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd import checkpoint
from rlgkd.agents import GRPO, PPO, Reinforce
from rlgkd.agents.state import TrainingState
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import SettingError

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
BOTH = {"replay_terms": "both", "policy_loss": "clipped", "alpha": 0.0}


def agent_of(kind=Reinforce, **given):
    task = tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")), prompts=("A", "B C", "C A", "B"))
    settings = {
        "prompts_per_update": 2,
        "group_size": 3,
        "learning_rate": 2e-2,
        "seed": 3,
        "replay_size": 4,
        "replay_prompts": 2,
        "teacher": tiny.model(vocabulary=4, seed=1, scale=0.1),
        **given,
    }
    if settings.get("alpha") == 0.0:
        del settings["teacher"]
    agent = kind(tiny.model(vocabulary=4, scale=0.1), TextVecEnv(task, num_envs=2), **settings)
    agent.rows = tiny.Rows()
    agent.set_logger(Logger(None, [agent.rows]))
    return agent


def updates(agent, number: int) -> list:
    """The rollout of each of so many updates."""
    found = []
    for _ in range(number):
        agent.learn(1, reset_num_timesteps=False)
        found.append(agent.rollout)
    return found


@pytest.mark.parametrize("given", [{}, BOTH])
def test_texts_come_back_as_they_were_sampled(given) -> None:
    agent = agent_of(**given)
    rollouts = updates(agent, 5)
    assert not rollouts[0].replayed and [len(r.replayed) for r in rollouts[1:]] == [6] * 4
    assert [len(r.fresh) for r in rollouts] == [6] * 5 and len(agent.trajectories) == 6
    sampled = [t for r in rollouts for t in r.fresh]
    for update, r in enumerate(rollouts):
        assert r.tokens == sum(t.length for t in r.fresh)  # nothing is counted twice
        for row in r.replayed:
            t = r.trajectories[row]
            same = [one for one in sampled[: 6 * update] if one.tokens_T.tobytes() == t.tokens_T.tobytes()]
            same = [one for one in same if one.logp_T.tobytes() == t.logp_T.tobytes() and one.sample == t.sample]
            assert same and (same[0].item, same[0].stop, same[0].text) == (t.item, t.stop, t.text)
            assert same[0].score.reward == t.score.reward and t.source == ("student" if given else "replay")
    # The newest four prompts are kept, in order.
    assert [sample["tokens"] for group in agent.state.replay for sample in group] == [
        t.tokens_T.tolist() for r in rollouts[-2:] for t in r.fresh
    ]
    assert agent.num_timesteps == sum(r.tokens for r in rollouts) and agent.state.rewards.count == 30
    rewards = [t.score.reward for t in rollouts[-1].fresh]
    assert agent.rows.rows[-1]["rollout/ep_rew_mean"] == pytest.approx(np.mean(rewards))


def test_in_both_terms_whole_groups_have_advantages_and_ratios_to_the_policy_that_sampled_them() -> None:
    agent = agent_of(GRPO, **BOTH)
    rollout = updates(agent, 4)[-1]
    credit = agent.credit(rollout)
    assert credit.advantages_BL.shape[0] == 12
    for group in credit.advantages_BL.view(4, 3):
        assert group.sum().item() == pytest.approx(0.0, abs=1e-6)  # each with its own mean taken off
    now_BL = rollout.log_probabilities(agent.student, 10**4)
    for row in rollout.replayed:
        t = rollout.trajectories[row]
        ratio_L = np.exp(now_BL[row, : t.length].numpy() - t.logp_T[t.action_mask_T])
        assert (np.abs(ratio_L - 1) > 1e-4).any()


def test_training_that_goes_on_from_a_checkpoint_is_that_which_never_stopped(tmp_path) -> None:
    agent, other = agent_of(), agent_of()
    updates(agent, 3)
    checkpoint.save(
        tmp_path / "step", model=agent.modules, optimizer=agent.policy.optimizer, state=agent.state.to_json()
    )
    state = checkpoint.load(tmp_path / "step", model=other.modules, optimizer=other.policy.optimizer)
    other.state = TrainingState.from_json(state)
    for one in (agent, other):
        updates(one, 3)
    assert agent.state == other.state and agent.state.replay
    assert all(torch.equal(a, b) for a, b in zip(agent.modules.parameters(), other.modules.parameters(), strict=True))


def test_without_a_buffer_nothing_is_kept_and_nothing_is_written() -> None:
    agent = agent_of(replay_size=0, replay_prompts=4)
    updates(agent, 2)
    assert agent.state.replay == [] and "replay" not in agent.state.to_json()
    with pytest.raises(TypeError, match="its replay is"):
        TrainingState.from_json({"replay": 3})


@pytest.mark.parametrize(
    ("kind", "given", "match"),
    [
        (Reinforce, {"replay_size": 0, "replay_prompts": 2}, "replay_prompts.* set replay_size too"),
        (Reinforce, {"estimator": "sampled"}, "replay_terms.* set estimator to exact"),
        (Reinforce, {"replay_terms": "both"}, "replay_terms.* set policy_loss to clipped"),
        (Reinforce, {"alpha": 0.0}, "replay_terms.* set it to both"),
        (GRPO, {"replay_terms": "both", "precision": "bfloat16"}, "replay_terms.* set precision to float32"),
        (GRPO, {"combination": "in_reward", "estimator": "sampled", "replay_terms": "both"}, "replay_size.* in_loss"),
        (PPO, {"replay_terms": "both"}, "replay_terms"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, given, match) -> None:
    with pytest.raises(SettingError, match=match):
        agent_of(kind, **given)
