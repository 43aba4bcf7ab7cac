"""What an agent logs of a rollout, and its warning of a reward that never differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlgkd.agents.rollout import Rollout
from rlgkd.objective import Objective
from rlgkd.ops.running_mean_std import RunningMeanStd
from rlgkd.types import ON_POLICY, Item, StopReason, Trajectory

CONSTANT_UPDATES = 5
"""Updates with a constant reward before the warning."""
LONG_TEXT = 32
"""Tokens from which texts are long: a beta that is so many times off alpha / (1 - alpha) is warned of."""


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over the trajectories by their names in the log."""
    rewards = np.array([t.score.reward for t in trajectories])
    cut = np.array([t.stop is StopReason.TRUNCATED for t in trajectories])
    metrics = {
        "rollout/ep_rew_mean": _mean_of_known(rewards),
        "rollout/reward_failed": float((np.isnan(rewards) & ~cut).mean()),
        "rollout/truncated": float(cut.mean()),
        "rollout/ep_len_mean": float(np.mean([t.length for t in trajectories])),
        "rollout/repeated": float(np.mean([repeated(t.tokens_T[t.action_mask_T]) for t in trajectories])),
        "rollout/ended": float(np.mean([t.stop == "end" for t in trajectories])),
        "rollout/student": float(np.mean([t.source in ON_POLICY for t in trajectories])),
    }
    for part in sorted({name for t in trajectories for name in t.score.parts}):
        values = [t.score.parts[part] for t in trajectories if part in t.score.parts]
        metrics[f"rollout/reward/{part}"] = _mean_of_known(np.array(values))
    return metrics


def teacher_metrics(trajectories: Sequence[Trajectory], name_of: Callable[[Item], str]) -> dict[str, float]:
    """The mean reward of each teacher's texts, and their share of all, by their names in the log."""
    names = np.array([name_of(t.item) for t in trajectories])
    rewards = np.array([t.score.reward for t in trajectories])
    metrics: dict[str, float] = {}
    for name in sorted({*names.tolist()}):
        metrics[f"teacher/{name}/reward"] = _mean_of_known(rewards[names == name])
        metrics[f"teacher/{name}/texts"] = float((names == name).mean())
    return metrics


def repeated(token_L: np.ndarray) -> float:
    """The share of a text's triples of tokens that it has had before, in [0, 1).

    Examples:
        >>> repeated(np.array([1, 2, 3, 4])), repeated(np.array([7, 7, 7, 7, 7, 7]))
        (0.0, 0.75)
    """
    if len(token_L) < 3:
        return 0.0
    tokens = token_L.tolist()  # a set of tuples takes a tenth of np.unique's time on texts of this length
    triples = [*zip(tokens, tokens[1:], tokens[2:], strict=False)]
    return 1 - len(set(triples)) / len(triples)


def constant_reward(seen: RunningMeanStd, rollout: Rollout, objective: Objective) -> float | None:
    """The reward, if it has been identical for every sample so far and has weight, so that no policy gradient is left.

    None if rewards differ, also within a text, or if the policy term has no weight.
    """
    per_action = any(t.score.steps for t in rollout.trajectories)
    return seen.mean if seen.count and seen.is_constant and not per_action and objective.alpha < 1 else None


def of_constant_reward(reward: float, samples: int) -> str:
    """What is said of a reward that never differs."""
    return (
        f"reward: the same, {reward:.3f}, for all {samples} samples so far: nothing to learn from; look at the texts "
        "(rollouts.jsonl of a run, or the agent's trajectories)"
    )


def of_reductions(alpha: float, beta: float) -> str:
    """What is said of an alpha that is not what it looks like, because the two terms do not share their normaliser."""
    return (
        f"alpha: {alpha:g} is a beta of {beta:.2g} at texts of this length, and of {alpha / (1 - alpha):.2g} with one "
        "reduction for both terms; set reduction alone, or choose alpha for this beta (docs/choosing-alpha.md)"
    )


def _mean_of_known(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan
