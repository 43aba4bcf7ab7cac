"""Rewards to choose from. A reward of one's own is any function (see rlgkd.envs.rewards.arguments.Reward)."""

from rlgkd.envs.rewards.causal_judge import CausalJudge
from rlgkd.envs.rewards.combined import Shaped, Weighted
from rlgkd.envs.rewards.entailment import Entailment
from rlgkd.envs.rewards.http import judge, served
from rlgkd.envs.rewards.mathematics import mathematics
from rlgkd.envs.rewards.reward_model import RewardModel
from rlgkd.envs.rewards.text import bleu, chrf, exact, length, numeric, pattern, rouge

__all__ = [
    "CausalJudge",
    "Entailment",
    "RewardModel",
    "Shaped",
    "Weighted",
    "bleu",
    "chrf",
    "exact",
    "judge",
    "length",
    "mathematics",
    "numeric",
    "pattern",
    "rouge",
    "served",
]
