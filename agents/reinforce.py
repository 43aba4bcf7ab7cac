"""REINFORCE with a leave-one-out baseline, and a teacher in the objective.

Williams 1992; the baseline is that of Kool et al. 2019 and RLOO (Ahmadian et al. 2024, arXiv 2402.14740); the mixture
is Eq. 5 of GKD (arXiv 2306.13649).
"""

from __future__ import annotations

from rlgkd.agents.base import TextAlgorithm
from rlgkd.errors import SettingError
from rlgkd.ops.returns import leave_one_out
from rlgkd.types import Source


class Reinforce(TextAlgorithm):
    """Policy gradient on (1-alpha) E[r] - alpha E[D]: alpha 0 is pure RL, alpha 1 is GKD, in between is RL + GKD."""

    def _setup_model(self) -> None:
        if self.group_size < 2 and self.objective.alpha < 1:
            raise SettingError("group_size", self.group_size, "the leave-one-out baseline needs 2 samples of a prompt")
        super()._setup_model()

    def train(self) -> None:
        """One update: A_i = r_i - mean of the other samples' r; a batch from data has no policy term."""
        rewards_PG = self.rewards_PG()
        if self.trajectories[0].source is Source.STUDENT and self.group_size > 1:
            advantages_PG = leave_one_out(rewards_PG)
        else:
            advantages_PG = rewards_PG.new_zeros(rewards_PG.shape)
        self.descend(advantages_PG.flatten())
