"""The policy's entropy in the return, for stock Stable-Baselines3."""

from __future__ import annotations

import math

from stable_baselines3.common.callbacks import BaseCallback

from rlgkd.errors import SettingError


class EntropyReward(BaseCallback):
    """Adds -alpha log p_S(y_n) to each reward of PPO or A2C, so that returns hold the entropy of all later tokens.

    With the wrapper TeacherReward, gamma = 1 and ent_coef = 0 the sum of rewards estimates
    (1-alpha) r - alpha KL(p_S || p_T) of the text. `ent_coef` would leave out what a token does to later entropies.

        PPO(..., gamma=1.0).learn(100_000, callback=EntropyReward(0.3))
    """

    def __init__(self, alpha: float) -> None:
        """Give the weight of the entropy, in reward per nat; the wrapper's alpha."""
        if not (math.isfinite(alpha) and alpha >= 0):
            raise SettingError("alpha", alpha, "give 0 or more")
        super().__init__()
        self.alpha = alpha

    def _on_step(self) -> bool:
        # SB3 calls this behind the environment's step and before it stores the very array of rewards.
        self.locals["rewards"] -= self.alpha * self.locals["log_probs"].cpu().numpy()
        return True
