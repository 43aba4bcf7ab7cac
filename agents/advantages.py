"""From scores to advantages: what each action of a rollout earned, and how much better that was than expected.

The mathematics of rewards alone is in rlgkd.ops.returns. PPO has advantages of its own (ppo.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlgkd.agents.agent_settings import RewardSettings
from rlgkd.agents.micro_batch import MicroBatch
from rlgkd.agents.rollout import Rollout
from rlgkd.ops.returns import UNSCALED, overlong_penalty
from rlgkd.types import Trajectory


class AuxiliaryLoss(Protocol):
    """A loss besides Eq. 5's that needs the student's states, such as that of a value head."""

    def __call__(self, states_NH: Tensor, policy_weight_N: Tensor, part: MicroBatch) -> Tensor:
        """Return the scalar loss of a micro-batch, weighted as the policy term is."""
        ...

    def metrics(self) -> dict[str, float]:
        """What to log of the losses since the last call."""
        ...


@dataclass(frozen=True)
class Credit:
    """What the task reward makes of each trajectory or action."""

    advantages_BL: Tensor
    """[B, 1] of each trajectory or [B, L] of each action, finite; 0 where the reward has no say."""
    valid_B: Tensor
    """bool [B]: False for a trajectory without policy term: its reward failed, or its group is dropped."""
    auxiliary: AuxiliaryLoss | None = None
    policy_gate_BL: Tensor | None = None
    """[B, L], a gate's weights in the policy term; None is 1."""
    divergence_gate_BL: Tensor | None = None
    """[B, L], a gate's weights in the divergence; None is 1."""


@dataclass(frozen=True)
class Rewards:
    """Rewards of the actions of on-policy trajectories."""

    values_BL: Tensor
    """float64 [B, L]; of no meaning where a reward failed. A reward without parts by action is the last one's."""
    valid_B: Tensor
    """bool [B]: whether the trajectory's reward is known."""


def rewards_of(
    trajectories: Sequence[Trajectory], settings: RewardSettings, *, deviation: float, max_new_tokens: int
) -> Rewards:
    """Collect the rewards of on-policy trajectories, with the penalty of `overlong_buffer`.

    Args:
        trajectories: On-policy ones.
        settings: How rewards become advantages.
        deviation: What `normalise_rewards` divides by.
        max_new_tokens: The length limit.
    """
    lengths_B = torch.tensor([t.length for t in trajectories], dtype=torch.int64, device="cpu")
    longest = max((t.length for t in trajectories), default=0)
    values_BL = torch.zeros(len(trajectories), longest, dtype=torch.float64, device="cpu")
    valid_B = torch.tensor([not math.isnan(t.score.reward) for t in trajectories], dtype=torch.bool, device="cpu")
    for row, t in enumerate(trajectories):
        if not valid_B[row]:
            continue
        if t.score.steps is None:
            values_BL[row, t.length - 1] = t.score.reward
        else:
            values_BL[row, : t.length] = torch.tensor(t.score.steps, dtype=torch.float64, device="cpu")
    if settings.normalise_rewards:
        values_BL = values_BL / deviation
    if settings.overlong_buffer:
        last_BL = torch.arange(longest, device="cpu") == lengths_B[:, None] - 1
        penalty_B = overlong_penalty(lengths_B, max_new_tokens, settings.overlong_buffer)
        values_BL = values_BL + last_BL * penalty_B[:, None]
    return Rewards(values_BL, valid_B)


def credit_of(
    rollout: Rollout, rewards: Rewards, settings: RewardSettings, *, group_size: int, costs_BL: Tensor | None
) -> Credit:
    """Compare each trajectory's return with others, as the advantage of the settings does.

    If rewards have per-action parts, an action answers for what came after it alone: what was earned before is
    subtracted, which changes no expectation. Advantages that are divided by a deviation stay those of whole texts.

    Args:
        rollout: The texts, on-policy ones first.
        rewards: Those of its on-policy trajectories.
        settings: How rewards become advantages.
        group_size: Samples of each prompt.
        costs_BL: What `in_reward` charges each action of the whole rollout; else None.
    """
    on_policy = rollout.on_policy
    off_policy = len(rollout.trajectories) - len(on_policy)
    valid_PG = rewards.valid_B.view(-1, group_size)
    return_PG = rewards.values_BL.sum(1).view(-1, group_size)
    if costs_BL is not None:
        return_PG = return_PG - costs_BL.sum(1).view(return_PG.shape)
    advantage_PG: Tensor = settings.advantage.function(return_PG, valid_PG)
    if settings.drop_even_groups:
        valid_PG = valid_PG & ~even_groups(on_policy, valid_PG)[:, None]
    advantages_BL = advantage_PG.flatten()[:, None]
    if settings.advantage.name in UNSCALED and any(t.score.steps for t in on_policy):
        before_BL = rewards.values_BL.cumsum(1) - rewards.values_BL
        advantages_BL = advantages_BL - before_BL
        missing = rollout.longest - advantages_BL.shape[1]
        advantages_BL = torch.nn.functional.pad(advantages_BL, (0, missing))
    valid_B = torch.cat([valid_PG.flatten(), valid_PG.new_ones(off_policy)])
    return Credit(torch.nn.functional.pad(advantages_BL, (0, 0, 0, off_policy)), valid_B)


def no_credit(trajectories: Sequence[Trajectory]) -> Credit:
    """The credit of a rollout whose rewards do not count, so that one which failed takes no text out of it."""
    zeros_B1 = torch.zeros(len(trajectories), 1, dtype=torch.float64, device="cpu")
    return Credit(zeros_B1, torch.ones(len(trajectories), dtype=torch.bool, device="cpu"))


def even_groups(trajectories: Sequence[Trajectory], valid_PG: Tensor) -> Tensor:
    """bool [P]: groups whose valid rewards, the task's own, are all the same; a group without any is one."""
    rewards = [t.score.reward for t in trajectories]
    reward_PG = torch.tensor(rewards, dtype=torch.float64, device="cpu").view(valid_PG.shape)
    highest_P = reward_PG.masked_fill(~valid_PG, -math.inf).amax(1)
    lowest_P = reward_PG.masked_fill(~valid_PG, math.inf).amin(1)
    return highest_P <= lowest_P
