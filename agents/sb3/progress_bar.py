"""Stable-Baselines3's progress bar, counting tokens."""

from __future__ import annotations

import rich
from stable_baselines3.common.callbacks import ProgressBarCallback
from tqdm.std import tqdm  # type: ignore[import-untyped]


class TokenProgressBar(ProgressBarCallback):
    """SB3's bar advances by the number of rows each step; rows that have ended generate no token.

    In a notebook it is a line of text: SB3's bar would be a widget, which warns and shows nothing without ipywidgets.
    """

    def _on_training_start(self) -> None:
        if rich.get_console().is_jupyter:
            self.pbar = tqdm(total=self.locals["total_timesteps"] - self.model.num_timesteps)
        else:
            super()._on_training_start()
        self._first = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.pbar.update(self.num_timesteps - self._first - self.pbar.n)
        return True
