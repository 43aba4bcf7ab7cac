"""The vector environment: many episodes in lockstep, Gymnasium's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlgkd.envs.episodes import Episodes
from rlgkd.envs.task import TextTask
from rlgkd.envs.task_makers import build_task
from rlgkd.errors import SettingError
from rlgkd.types import Task


class TextVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` episodes in lockstep; row i seeded with s equals the scalar environment seeded with s + i.

    A row whose episode has ended is reset as `autoreset_mode` says: NEXT_STEP (Gymnasium's default; the next action of
    the row is ignored and its reward is 0), SAME_STEP (the last observation and info stand in `final_obs` and
    `final_info`) or DISABLED (the caller resets it, with `options["reset_mask"]`). The results are those of Gymnasium's
    SyncVectorEnv over scalar environments.
    """

    task: Task
    """The prompts, tokenizer, limits and reward of all rows."""
    split: str
    """The split that the episodes are from."""

    def __init__(
        self,
        task: Task | str | None = None,
        *,
        num_envs: int = 1,
        split: str = "train",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        """Make the rows from a task, a task's import path, or the settings of `TextTask`.

        Raises: SettingError, DataError, ModelError.
        """
        modes = {mode.value: mode for mode in AutoresetMode}
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise SettingError("autoreset_mode", autoreset_mode, f"choose one of {', '.join(modes)}")
        self.task = build_task(task, TextTask, **settings)
        self.split = split
        self.num_envs = num_envs
        self._mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self._mode}
        self._episodes = Episodes(self.task, split, num_envs)
        self.single_observation_space = self._episodes.observation_space
        self.single_action_space = self._episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._waiting_N = np.zeros(num_envs, dtype=bool)
        """Rows that are reset at the next step; only in NEXT_STEP."""
        self._seeded_N = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin every row's next item, or the first of the stream that its seed orders.

        Args:
            seed: Row i takes seed + i, or the i-th of a list; None continues the streams of the rows.
            options: `reset_mask`, a bool array, names the rows to reset; `index` is the item they jump to.

        Raises: SettingError if there is not one seed, or one bool of the mask, for each row.
        """
        seeds = self._seeds(seed)
        mask_N = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        if mask_N.shape != (self.num_envs,) or mask_N.dtype != bool or not mask_N.any():
            raise SettingError("reset_mask", mask_N.tolist(), f"give {self.num_envs} bools, at least one of them True")
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(mask_N).tolist():
            value = seeds[row]
            if value is not None or not self._seeded_N[row]:
                self._episodes.seed(row, int(self.np_random.integers(2**31)) if value is None else value)
            infos = self._add_info(infos, self._episodes.reset(row, options), row)
        self._seeded_N |= mask_N
        self._waiting_N &= ~mask_N
        return self._episodes.tokens_NT.copy(), infos  # a copy: the caller may keep it

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Append one token to every row that is not reset in this step.

        Raises: SettingError for actions that are not one token for each row; ResetNeeded before the first reset.
        """
        actions_N = np.asarray(actions)
        if actions_N.shape != (self.num_envs,):
            raise SettingError("actions", f"shape {actions_N.shape}", f"give one for each of the {self.num_envs} rows")
        running = np.flatnonzero(~self._waiting_N)
        outcomes = self._episodes.step(running.tolist(), actions_N[running])
        reward_N = np.zeros(self.num_envs, dtype=np.float64)
        terminated_N = np.zeros(self.num_envs, dtype=bool)
        truncated_N = np.zeros(self.num_envs, dtype=bool)
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(self._waiting_N).tolist():
            infos = self._add_info(infos, self._episodes.reset(row), row)
        for row, outcome in outcomes.items():
            reward_N[row] = outcome.reward
            terminated_N[row] = not outcome.truncated
            truncated_N[row] = outcome.truncated
            info = outcome.info
            if self._mode is AutoresetMode.SAME_STEP:
                last = {"final_obs": self._episodes.tokens_NT[row].copy(), "final_info": info}
                info = {**last, **self._episodes.reset(row)}
            infos = self._add_info(infos, info, row)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._waiting_N = terminated_N | truncated_N
        return self._episodes.tokens_NT.copy(), reward_N, terminated_N, truncated_N, infos

    def action_masks(self) -> np.ndarray:
        """bool [num_envs, V]: which tokens the task's mask allows next; all in rows that have ended."""
        return self._episodes.action_masks()

    def as_sb3(self) -> Any:
        """Return the same task and split as a Stable-Baselines3 VecEnv."""
        from rlgkd.envs.sb3 import TextVecEnv

        return TextVecEnv(self.task, num_envs=self.num_envs, split=self.split)

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, Sequence):
            if len(seed) != self.num_envs:
                raise SettingError("seed", list(seed), f"give one for each of the {self.num_envs} rows")
            return list(seed)
        super().reset(seed=int(seed))  # seeds `np_random`, which seeds rows that get none
        return [int(seed) + row for row in range(self.num_envs)]
