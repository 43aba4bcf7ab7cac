"""Stable-Baselines3's OnPolicyAlgorithm with tokens as timesteps.

Replaced are: SB3's buffer of single steps, for a sequence is one sample here; its training loop's order of logging, so
that the row of an update holds that update's losses; and its global seeds. Callbacks are called once for each lockstep
of the batch, as SB3 calls them once for each step of its vector environment.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from rlgkd.agents.sb3.progress_bar import TokenProgressBar
from rlgkd.agents.state import TrainingState
from rlgkd.errors import SettingError


class TokenAlgorithm(OnPolicyAlgorithm):
    """The training loop, whose counters are a `TrainingState`."""

    ends = False
    """Set in a callback's `_on_rollout_start`, it ends `learn` there, between two updates."""

    def __init__(self, **settings: Any) -> None:
        """Build as SB3 does, but for models and optimizer, which a subclass builds itself."""
        self.state = TrainingState()
        super().__init__(**settings, _init_setup_model=False)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "rlgkd",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train until `total_timesteps` tokens have been generated (or read from data); the last batch is finished."""
        given: Any = total_timesteps
        if not isinstance(given, int | float | np.number) or not given >= 0:  # NaN neither
            raise SettingError("total_timesteps", total_timesteps, "give the number of tokens to train for")
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        self.ends = False
        while self.num_timesteps < total_timesteps:
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if not self.collect_rollouts(self.env, callback):
                break
            self._update_current_progress_remaining(min(self.num_timesteps, total_timesteps), total_timesteps)
            self.train()
            self._n_updates += 1
            self.after_update()
            if log_interval and self._n_updates % log_interval == 0:
                self.dump_logs(self._n_updates)
        callback.on_training_end()
        return self

    @abstractmethod
    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: None = None, n_rollout_steps: int = 0
    ) -> bool:
        """Collect the texts of an update; returns whether to go on."""

    def after_update(self) -> None:
        """Look at the update that has ended, before its row is logged."""

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the environment's rows and the action space; unlike SB3, no global generator is touched."""
        if seed is not None:
            self.action_space.seed(seed)
            if self.env is not None:
                self.env.seed(seed)

    @property
    def num_timesteps(self) -> int:
        """Tokens so far, under SB3's name."""
        return self.state.timesteps

    @num_timesteps.setter
    def num_timesteps(self, value: int) -> None:
        self.state.timesteps = value

    @property
    def _n_updates(self) -> int:
        """Updates so far, under SB3's name."""
        return self.state.updates

    @_n_updates.setter
    def _n_updates(self, value: int) -> None:
        self.state.updates = value

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """As SB3's, with a progress bar that counts tokens."""
        callback = CallbackList(callback) if isinstance(callback, list) else callback
        callback = callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
        return super()._init_callback(CallbackList([callback, TokenProgressBar()]) if progress_bar else callback)
