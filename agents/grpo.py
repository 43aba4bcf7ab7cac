"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), with a teacher in the objective.

Deviates from the paper: the divergence to the teacher (for the paper's own, give the student's start as teacher) is
Eq. 5's, exact over the vocabulary, and weighed by alpha against 1 - alpha, instead of the sampled k3 with a beta and a
reward of weight 1.

Dr. GRPO (arXiv 2503.20783) is advantage="mean_baseline", reduction="constant". DAPO (arXiv 2503.14476) is
reduction="token_mean", clip_high=0.28, drop_even_groups=True and an overlong_buffer. GSPO (arXiv 2507.18071) is
ratio="sequence", CISPO (arXiv 2506.13585) policy_loss="clipped_weight", reduction="token_mean".
"""

from __future__ import annotations

from rlgkd.agents.agent_settings import ADVANTAGE, RewardSettings
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.objective import POLICY_LOSS, Objective


class GRPOConfig(AlgorithmConfig):
    """What makes GRPO of Reinforce, whose own are `leave_one_out`, `reinforce` and `constant`.

    docs/mathematics.md ("Advantages and policy losses") has all agents in a table.
    """

    owner = "GRPO"

    reward: RewardSettings = RewardSettings(advantage=ADVANTAGE("group_normalised"))
    objective: Objective = Objective(policy_loss=POLICY_LOSS("clipped"), reduction="sequence_mean")


class GRPO(TextAlgorithm):
    """Rewards normalised within each prompt's group, and a clipped ratio to the policy that sampled."""

    Config = GRPOConfig
