"""The policy's entropy in the return, for stock Stable-Baselines3."""

from __future__ import annotations

import math
import warnings

from stable_baselines3.common.callbacks import BaseCallback

from rlgkd.agents.sb3.env_wrappers import teacher_weight
from rlgkd.errors import SettingError

THEORY = {
    "gamma": (1.0, "a text's reward and its later entropies must not be discounted"),
    "gae_lambda": (1.0, "each token must answer for all later ones"),
    "normalize_advantage": (False, "it would rescale reward and entropy from batch to batch"),
    "ent_coef": (0.0, "the entropy would count twice"),
}
"""What SB3's settings must be for the optimum, and why."""


class EntropyReward(BaseCallback):
    """Adds -alpha log p_S(y_n) to each reward of PPO or A2C, so that returns hold the entropy of all later tokens.

    With the wrapper TeacherReward the sum of rewards estimates (1-alpha) r - alpha KL(p_S || p_T) of the text, under
    the settings of `THEORY`; others get a warning. `ent_coef` would leave out what a token does to later entropies.

        PPO(..., gamma=1.0, gae_lambda=1.0, normalize_advantage=False).learn(100_000, callback=EntropyReward(0.3))

    Raises: SettingError where training begins, if the wrapper's alpha is another.
    """

    def __init__(self, alpha: float) -> None:
        """Give the weight of the entropy, in reward per nat; the wrapper's alpha."""
        if not (math.isfinite(alpha) and alpha >= 0):
            raise SettingError("alpha", alpha, "give 0 or more")
        super().__init__()
        self.alpha = alpha

    def _on_training_start(self) -> None:
        theirs = teacher_weight(self.training_env)
        if theirs is not None and theirs != self.alpha:
            raise SettingError(
                "alpha", self.alpha, f"the environment's TeacherReward has {theirs!r}; give both the same"
            )
        for name, (value, why) in THEORY.items():
            if (found := getattr(self.model, name, value)) != value:
                warnings.warn(
                    f"{name}: {found!r} is off the theory of EntropyReward; {why}: set it to {value}", stacklevel=5
                )

    def _on_step(self) -> bool:
        # SB3 calls this after the environment's step and before it stores this very array of rewards.
        self.locals["rewards"] -= self.alpha * self.locals["log_probs"].cpu().numpy()
        return True
