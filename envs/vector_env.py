"""The lockstep vector environments: many rows of the same dynamics, for Gymnasium and for Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlgkd.envs.dynamics import Episodes
from rlgkd.envs.task import build_task
from rlgkd.types import Task


class TextVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` episodes in lockstep; row i seeded with s equals the scalar environment seeded with s + i.

    Ended rows begin anew as `autoreset_mode` says: NEXT_STEP (Gymnasium's default; the action given to an ended row is
    ignored and its reward is 0) or SAME_STEP (the last observation and info stand in `final_obs` and `final_info`).
    """

    def __init__(
        self,
        task: Task | str | None = None,
        *,
        num_envs: int = 1,
        split: str = "train",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        """Make the rows from a task, a task's import path, or the settings of `TextTask`."""
        self.task, self.split, self.num_envs = build_task(task, **settings), split, num_envs
        self._mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self._mode}
        self._episodes = Episodes(self.task, split, num_envs)
        self.single_observation_space = self._episodes.observation_space
        self.single_action_space = self._episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over_N = np.zeros(num_envs, dtype=bool)
        self._seeded = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin every row's next item (or those of `options["reset_mask"]`)."""
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            for row, value in enumerate(seeds):
                if value is not None:
                    self._episodes.seed(row, value)
            self._seeded = True
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(mask):
            infos = self._add_info(infos, self._episodes.begin(int(row)), int(row))
            self._over_N[row] = False
        return self._episodes.tokens_NT.copy(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Write one token in every row that has not ended."""
        actions = np.asarray(actions)
        reward_N = np.zeros(self.num_envs, dtype=np.float64)
        running = np.flatnonzero(~self._over_N)
        waiting = np.flatnonzero(self._over_N)
        over = self._episodes.step([int(row) for row in running], actions[running])
        infos: dict[str, Any] = {}
        for row in waiting:
            infos = self._add_info(infos, self._episodes.begin(int(row)), int(row))
        self._over_N[:] = False
        for row, (score, info) in over.items():
            reward_N[row], self._over_N[row] = score.reward, True
            if self._mode is AutoresetMode.NEXT_STEP:
                infos = self._add_info(infos, info, row)
            else:
                last = {"final_obs": self._episodes.tokens_NT[row].copy(), "final_info": info}
                infos = self._add_info(infos, {**last, **self._episodes.begin(row)}, row)
        terminated_N = self._over_N.copy()
        if self._mode is AutoresetMode.SAME_STEP:
            self._over_N[:] = False
        return self._episodes.tokens_NT.copy(), reward_N, terminated_N, np.zeros_like(terminated_N), infos

    def as_sb3(self) -> Any:
        """The same task and split as a Stable-Baselines3 VecEnv."""
        from rlgkd.envs.sb3 import TextVecEnv

        return TextVecEnv(self.task, num_envs=self.num_envs, split=self.split)


def make(task: str, num_envs: int = 1, **settings: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Vector entry point of the registered ids."""
    return TextVectorEnv(task, num_envs=num_envs, **settings)
