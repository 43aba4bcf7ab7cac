"""Stable-Baselines3's progress bar, counting tokens."""

from __future__ import annotations

from stable_baselines3.common.callbacks import ProgressBarCallback


class TokenProgressBar(ProgressBarCallback):
    """SB3's bar advances by the number of rows each step; rows that have ended generate no token."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._first = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._first - self.pbar.n)
        return True
