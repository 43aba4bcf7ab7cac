"""Beyond Eq. 5's gradient: a value head, dropped groups, penalties, a steered alpha, an anchor that follows."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3.common.logger import Logger

from rlgkd import checkpoint
from rlgkd.agents import GRPO, PPO, Distill, Reinforce
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.state import TrainingState
from rlgkd.agents.update import Means
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import CheckpointError, ModelError, SettingError
from rlgkd.types import Batch, Score

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def environment(reward=lambda text: float(text.startswith("B")), **settings) -> TextVecEnv:
    return TextVecEnv(tiny.WordTask(TOKENIZER, reward, **settings), num_envs=2)


def student(seed: int = 0):
    return tiny.model(vocabulary=4, seed=seed)


def rows_of(agent, timesteps: int) -> list[dict[str, float]]:
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(timesteps)
    return rows.rows


def ppo(**settings) -> PPO:
    settings = {"alpha": 0.0, "learning_rate": 2e-2, "prompts_per_update": 8, "epochs": 3, **settings}
    return PPO(student(), environment(), **settings)


def test_ppo_learns_which_word_to_write_first_and_its_value_head_what_it_will_earn():
    agent = ppo()
    rows = rows_of(agent, 4000)
    assert np.mean([row["rollout/ep_rew_mean"] for row in rows[-3:]]) > 0.9
    losses = [row["train/value_loss"] for row in rows]
    assert losses[0] > 0.05 and np.mean(losses[-5:]) < 0.5 * losses[0]
    batch = Batch.collate(agent.trajectories, pad=0)
    with torch.no_grad():
        values = agent.value_head(agent.student.states(batch))[:, 0]
    assert values.mean().item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("settings", [{"policy_loss": "reinforce", "gae_lambda": 1.0, "epochs": 1}, {"group_size": 1}])
def test_a_learned_baseline_serves_reinforce_and_single_samples_too(settings):
    rows = rows_of(ppo(**settings), 3000)
    assert np.mean([row["rollout/ep_rew_mean"] for row in rows[-3:]]) > 0.9


def test_ppo_keeps_to_a_teacher_as_the_others_do():
    agent = ppo(alpha=1.0, teacher=student(1))
    rows = rows_of(agent, 4000)
    assert rows[-1]["train/divergence"] < 0.02 < rows[0]["train/divergence"]


def test_a_saved_ppo_has_its_value_head_again_and_a_checkpoint_goes_on_exactly(tmp_path):
    agent = ppo()
    agent.learn(300)
    agent.save(tmp_path / "agent.zip")
    again = PPO.load(tmp_path / "agent", env=environment())
    assert torch.equal(again.value_head.weight, agent.value_head.weight) and agent.value_head.weight.any()
    assert again.config == agent.config

    checkpoint.save(
        tmp_path / "step-1", model=agent.modules, optimizer=agent.policy.optimizer, state=agent.state.to_json()
    )
    other = ppo()
    other.state = TrainingState.from_json(
        checkpoint.load(tmp_path / "step-1", model=other.modules, optimizer=other.policy.optimizer)
    )
    for some in (agent, other):
        some.learn(300, reset_num_timesteps=False)
    assert all(torch.equal(a, b) for a, b in zip(agent.modules.parameters(), other.modules.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"gae_lambda": 1.5}, "gae_lambda"),
        ({"value_clip": -1.0}, "value_clip"),
        ({"value_coefficient": math.nan}, "value_coefficient"),
        ({"advantage": "leave_one_out"}, "advantage"),
        ({"drop_even_groups": True}, "drop_even_groups"),
    ],
)
def test_ppo_refuses_what_it_cannot_do_by_name(settings, field):
    with pytest.raises(SettingError) as error:
        ppo(**settings)
    assert error.value.field == field


def test_a_folder_without_a_value_head_is_refused(tmp_path):
    agent = ppo()
    agent.save(tmp_path / "agent")
    (tmp_path / "agent" / "value.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"value\.safetensors"):
        PPO.load(tmp_path / "agent", env=environment())


def test_an_even_group_is_dropped_from_the_mean_only_where_that_is_asked():
    agents = [
        GRPO(student(), environment(), alpha=0.0, prompts_per_update=8, group_size=2, drop_even_groups=drop)
        for drop in (False, True)
    ]
    for agent in agents:
        agent.train = lambda: None
        agent.learn(1)
    kept, dropped = (agent.credit(agent.rollout) for agent in agents)
    rewards_PG = agents[0]._rewards(agents[0].rollout).values_BL.sum(1).view(-1, 2)
    even_P = (rewards_PG[:, 0] == rewards_PG[:, 1]).repeat_interleave(2)
    assert 0 < even_P.sum() < 16
    assert torch.equal(dropped.valid_B, ~even_P) and kept.valid_B.all()
    assert torch.equal(kept.advantages_BL[~even_P], dropped.advantages_BL[~even_P])
    assert not kept.advantages_BL[even_P].any()


def test_evenness_is_of_what_was_earned_by_those_that_did_not_fail():
    agent = GRPO(
        student(),
        environment(max_new_tokens=3),
        alpha=0.0,
        prompts_per_update=1,
        group_size=3,
        drop_even_groups=True,
        overlong_buffer=3,
    )
    agent.train = lambda: None
    agent.learn(1)
    for rewards, even in (((1.0, math.nan, 1.0), True), ((1.0, 0.0, math.nan), False), ((math.nan,) * 3, True)):
        trajectories = [
            dataclasses.replace(t, score=Score(reward=reward))
            for t, reward in zip(agent.trajectories, rewards, strict=True)
        ]
        assert bool(agent.credit(Rollout(trajectories=trajectories)).valid_B.any()) != even


def test_a_batch_of_even_groups_changes_nothing():
    agent = GRPO(student(), environment(lambda text: 1.0), alpha=0.0, drop_even_groups=True, learning_rate=1.0)
    before = agent.student.head.weight.clone()
    agent.learn(1)
    assert torch.equal(agent.student.head.weight, before)


def test_a_reward_that_failed_takes_its_sample_out_of_the_policy_term():
    agent = GRPO(student(), environment(lambda text: math.nan if "C" in text else 1.0), alpha=0.0, group_size=8)
    agent.train = lambda: None
    agent.learn(1)
    failed = torch.tensor(["C" in t.text for t in agent.trajectories])
    assert failed.any() and torch.equal(agent.credit(agent.rollout).valid_B, ~failed)


def test_the_penalty_for_length_is_part_of_the_reward_and_shortens_the_texts():
    settings = {"alpha": 0.0, "learning_rate": 2e-2, "prompts_per_update": 8}
    agent = Reinforce(student(), environment(lambda text: 0.0, max_new_tokens=8), **settings, overlong_buffer=8)
    rows = rows_of(agent, 6000)
    assert rows[-1]["rollout/ep_len_mean"] < 2 < rows[0]["rollout/ep_len_mean"]
    assert rows[-1]["rollout/ep_rew_mean"] == 0.0  # what is logged is the task's reward alone
    with pytest.raises(SettingError, match="overlong_buffer"):
        Reinforce(student(), environment(), **settings, overlong_buffer=9)


def test_an_entropy_bonus_keeps_the_policy_from_collapsing():
    ends = []
    for bonus in (0.0, 0.5):
        agent = Reinforce(
            student(),
            environment(max_new_tokens=1),
            alpha=0.0,
            learning_rate=2e-2,
            prompts_per_update=8,
            entropy_bonus=bonus,
        )
        ends.append(rows_of(agent, 3000)[-1]["train/entropy"])
    assert ends[0] < 0.1 and ends[1] > 0.3
    # One step, J = q_B + 0.5 H: the optimum is proportional to exp(r / 0.5).
    z = 3 + math.exp(2)
    assert ends[1] == pytest.approx(math.log(z) - 2 * math.exp(2) / z, abs=0.1)


@pytest.mark.parametrize("target", [0.05, 0.4])
def test_alpha_is_steered_until_the_divergence_is_what_was_asked(target):
    teacher = student(1)
    agent = Reinforce(
        student(),
        environment(max_new_tokens=1),
        teacher=teacher,
        alpha=0.5,
        divergence_target=target,
        alpha_rate=0.05,
        learning_rate=lambda remaining: 2e-2 * remaining,
        prompts_per_update=16,
        group_size=8,
    )
    rows = rows_of(agent, 300 * 128)
    assert np.mean([row["train/divergence"] for row in rows[-50:]]) == pytest.approx(target, rel=0.15)
    alphas = [row["train/alpha"] for row in rows]
    assert alphas[0] == 0.5 and len(set(alphas)) > 100
    assert agent.state.alpha == pytest.approx(alphas[-1], abs=0.02)
    with pytest.warns(UserWarning, match="forward KL"):
        Reinforce(student(), environment(), teacher=teacher, estimator="k3")
    with pytest.raises(SettingError, match="divergence_target"):
        Reinforce(student(), environment(), teacher=teacher, alpha=1.0, divergence_target=0.1)


def test_the_anchor_can_follow_the_student_slowly(tmp_path):
    module = student()
    agent = Reinforce(
        module,
        environment(),
        teacher=module,
        alpha=0.1,
        teacher_decay=0.9,
        epochs=2,
        learning_rate=2e-2,
        policy_loss="clipped",
    )
    average = copy.deepcopy(agent.student.module)
    step = agent.policy.optimizer.step

    def following():
        step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), agent.student.module.parameters(), strict=True):
                old.copy_(0.9 * old + 0.1 * new)

    agent.policy.optimizer.step = following
    agent.learn(300)
    for ours, theirs in zip(agent.teacher.module.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(agent.teacher.head.weight, agent.student.head.weight)
    agent.save(tmp_path / "agent")
    again = Reinforce.load(tmp_path / "agent", env=environment(), learning_rate=1e-3)
    assert torch.equal(again.teacher.head.weight, agent.teacher.head.weight)
    assert set(agent.modules.state_dict()) == {
        f"{part}.{name}" for part in ("student", "teacher") for name in module.state_dict()
    }
    plain = Reinforce(student(), environment(), teacher=student(1), alpha=0.1)
    plain.save(tmp_path / "agent")  # no teacher of an earlier agent stays behind
    assert not (tmp_path / "agent" / "teacher").exists()
    lent = student(1)
    before = lent.lm_head.weight.clone()
    Reinforce(student(), environment(), teacher=lent, alpha=0.1, teacher_decay=0.5, learning_rate=1e-2).learn(100)
    assert torch.equal(lent.lm_head.weight, before)
    with pytest.raises(ModelError, match="shape"):
        Distill(student(), environment(), teacher=tiny.model(vocabulary=4, layers=1), teacher_decay=0.9)


@pytest.mark.parametrize("algorithm", [Reinforce, PPO])
def test_a_divergence_in_the_reward_charges_each_token_for_its_log_ratio(algorithm):
    teacher = student(1)
    agent = algorithm(
        student(), environment(), teacher=teacher, alpha=0.3, estimator="sampled", combination="in_reward", group_size=4
    )
    agent.train = lambda: None
    agent.learn(1)
    agent.objective = agent.config.objective_at(1.0)
    costs_BL = agent._divergence_costs(agent.rollout)
    for t, costs_L in zip(agent.trajectories, costs_BL, strict=True):
        ids = torch.from_numpy(t.tokens_T)
        with torch.no_grad():
            logp_T, teacher_T = (
                m(ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
                for m in (agent.student.module, teacher)
            )
        expected = (0.3 * (logp_T - teacher_T))[t.action_mask_T[1:]].double()
        torch.testing.assert_close(costs_L[: t.length], expected, atol=1e-5, rtol=1e-4)
        assert not costs_L[t.length :].any()
    rewards_PG = torch.tensor([t.score.reward for t in agent.trajectories]).view(-1, 4)
    returns_PG = 0.7 * rewards_PG - costs_BL.sum(1).view(-1, 4)
    if algorithm is Reinforce:
        expected = (returns_PG - returns_PG.mean(1, keepdim=True)) * 4 / 3
        torch.testing.assert_close(agent.credit(agent.rollout).advantages_BL.view(-1, 4), expected)
    else:  # the head is still 0 everywhere, and lambda 0.95
        agent.config = agent.config.model_copy(update={"normalise_advantages": False})
        n = agent.trajectories[0].length
        slow = sum(0.95**k * (-costs_BL[0, k] + (0.7 * rewards_PG[0, 0] if k == n - 1 else 0.0)) for k in range(n))
        assert agent.credit(agent.rollout).advantages_BL[0, 0].item() == pytest.approx(slow.item(), abs=1e-5)
    with pytest.raises(SettingError, match="combination"):
        algorithm(student(), environment(), teacher=teacher, alpha=0.3, combination="in_reward")


def test_a_steered_alpha_can_be_overridden_on_load(tmp_path):
    agent = Reinforce(student(), environment(), teacher=student(1), alpha=0.5, divergence_target=0.01, alpha_rate=0.3)
    agent.learn(200)
    agent.save(tmp_path / "agent")
    again = Reinforce.load(tmp_path / "agent", env=environment(), teacher=student(1))
    assert again.state.alpha == agent.state.alpha > 0.5
    fixed = Reinforce.load(
        tmp_path / "agent", env=environment(), teacher=student(1), alpha=0.2, divergence_target=None, alpha_rate=0.1
    )
    assert fixed.state.alpha is None and fixed.objective.alpha == 0.2


def test_in_bfloat16_the_ratio_of_a_policy_that_has_not_moved_is_one():
    agent = GRPO(
        tiny.model(vocabulary=4, scale=0.5),
        environment(max_new_tokens=16),
        alpha=0.0,
        precision="bfloat16",
        ratio="sequence",
        group_size=8,
    )
    agent.gradient_step = lambda rollout, credit: Means()
    agent.learn(1)
    for part in agent.rollout.micro_batches:  # as the update reads them
        batch = part.batch
        with torch.no_grad(), agent.autocast():
            logp_NV = agent.student.logits(agent.student.states(batch)).log_softmax(-1)
        logp_N = logp_NV.gather(1, agent.student.actions(batch)[:, None])[:, 0]
        torch.testing.assert_close(batch.logp_BT[batch.action_mask_BT], logp_N, atol=5e-3, rtol=0)
