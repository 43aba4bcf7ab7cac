"""From scores to credit: what each action of a rollout earned, and what the advantages make of it.

The mathematics of rewards alone is in rlgkd.ops.returns. Left out: PPO's values and generalised advantages (ppo.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlgkd.ops.returns import ADVANTAGES, UNSCALED, overlong_penalty
from rlgkd.types import ON_POLICY, Trajectory


def rewards_of_actions(
    trajectories: Sequence[Trajectory],
    settings: Mapping[str, Any],
    *,
    alpha: float,
    deviation: float,
    max_new_tokens: int,
) -> Tensor:
    """[B, L], what each action of the rollout's own texts earned; NaN at the last one where the reward failed.

    All of it is the last one's where the reward does not tell. The penalty of `overlong_buffer` is in it.

    Args:
        trajectories: The rollout; those that the student did not sample have no row.
        settings: The agent's.
        alpha: Of now.
        deviation: What `normalise_rewards` divides by.
        max_new_tokens: The length limit.
    """
    own = [t for t in trajectories if t.source in ON_POLICY]
    lengths_B = torch.tensor([t.length for t in own], dtype=torch.int64, device="cpu")
    longest = max((t.length for t in own), default=0)
    rewards_BL = torch.zeros(len(own), longest, dtype=torch.float64, device="cpu")
    for row, t in enumerate(own):
        if t.score.steps is None or math.isnan(t.score.reward):
            rewards_BL[row, t.length - 1] = t.score.reward
        else:
            rewards_BL[row, : t.length] = torch.tensor(t.score.steps, dtype=torch.float64, device="cpu")
    if settings["normalise_rewards"]:
        rewards_BL = rewards_BL / deviation
    if buffer := settings["overlong_buffer"]:
        last_BL = torch.arange(longest, device="cpu") == lengths_B[:, None] - 1
        rewards_BL = rewards_BL + last_BL * overlong_penalty(lengths_B, max_new_tokens, buffer)[:, None]
    return (1 - alpha) * rewards_BL if settings["combination"] == "in_reward" else rewards_BL


def advantages(
    trajectories: Sequence[Trajectory],
    earned_BL: Tensor,
    costs_BL: Tensor | None,
    settings: Mapping[str, Any],
    *,
    alpha: float,
) -> Tensor:
    """[B, 1], what the task reward makes of each trajectory, or [B, L] of each action where it tells them apart.

    Then an action answers for what came after it alone: what was earned before is taken off (which changes no
    expectation; advantages that are divided by a deviation stay those of whole texts).

    NaN where it makes nothing: a reward that failed, a group to be dropped. 0 where it has no say: alpha 1, a text
    that the student did not sample.

    Args:
        trajectories: The rollout, its own texts first.
        earned_BL: As `rewards_of_actions` gives it.
        costs_BL: What `in_reward` charges each action of the whole rollout; else None.
        settings: The agent's.
        alpha: Of now.
    """
    rewards_PG = earned_BL.sum(1).view(-1, settings["group_size"])
    others = len(trajectories) - len(earned_BL)
    if costs_BL is not None:
        rewards_PG = rewards_PG - costs_BL.sum(1).view(rewards_PG.shape)
    advantages_PG = torch.zeros_like(rewards_PG)
    if (alpha < 1 or costs_BL is not None) and len(rewards_PG):
        valid_PG = ~rewards_PG.isnan()
        advantage = ADVANTAGES[settings["advantage"]]
        advantages_PG = advantage(rewards_PG.masked_fill(~valid_PG, 0.0), valid_PG).masked_fill(~valid_PG, math.nan)
        if settings["drop_even_groups"]:
            told_PG = np.array([t.score.reward for t in trajectories[: rewards_PG.numel()]])
            told_PG = np.ma.masked_invalid(told_PG.reshape(rewards_PG.shape))
            even_P = torch.from_numpy(np.ma.filled(told_PG.max(axis=1) == told_PG.min(axis=1), True))
            advantages_PG = advantages_PG.masked_fill(even_P[:, None], math.nan)
        if settings["advantage"] in UNSCALED and any(t.score.steps for t in trajectories):
            before_BL = earned_BL.nan_to_num(nan=0.0)
            advantages_BL = advantages_PG.flatten()[:, None] - (before_BL.cumsum(1) - before_BL)
            longest = max(t.length for t in trajectories)
            return torch.nn.functional.pad(advantages_BL, (0, longest - advantages_BL.shape[1], 0, others))
    return torch.cat([advantages_PG.flatten(), advantages_PG.new_zeros(others)])[:, None]
