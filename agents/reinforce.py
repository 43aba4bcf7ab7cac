"""REINFORCE with a teacher in the objective: Eq. 5 of GKD (arXiv 2306.13649) by the plain policy gradient.

Williams 1992; the baseline is by default that of Kool et al. 2019 and RLOO (Ahmadian et al. 2024, arXiv 2402.14740).
"""

from __future__ import annotations

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.config import AlgorithmConfig


class ReinforceConfig(AlgorithmConfig):
    """The defaults of all agents: the leave-one-out baseline, no ratio, sums over a text by the length limit."""

    owner = "Reinforce"


class RLOOConfig(AlgorithmConfig):
    """The baseline is always the mean reward of the prompt's other samples."""

    owner = "RLOO"
    fixed = frozenset({"advantage", "policy_loss"})


class Reinforce(TextAlgorithm):
    """Policy gradient on (1-alpha) E[r] - alpha E[D]: alpha 0 is pure RL, alpha 1 is GKD, in between is RL + GKD."""

    Config = ReinforceConfig


class RLOO(TextAlgorithm):
    """Reinforce whose baseline is always the mean reward of the prompt's other samples."""

    Config = RLOOConfig
