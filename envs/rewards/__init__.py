"""Rewards to choose from. A reward of one's own is any function of what it names (see rlgkd.envs.rewards.grader)."""

from rlgkd.envs.rewards.combined import Shaped, Weighted
from rlgkd.envs.rewards.http import judge, served
from rlgkd.envs.rewards.models import CausalJudge, Entailment, RewardModel
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
    "numeric",
    "pattern",
    "rouge",
    "served",
]
