"""The lockstep environment as a Stable-Baselines3 VecEnv: ended rows begin anew within the same step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rlgkd.envs.episodes import Episodes
from rlgkd.envs.task import build_task
from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.errors import SettingError
from rlgkd.types import Task


class TextVecEnv(VecEnv):
    """`num_envs` episodes in lockstep. Infos of ended rows hold `terminal_observation` and a Monitor's `episode`.

    As in SB3's own, `seed` and `set_options` take effect at the next `reset`: row i seeded with s equals the scalar
    environment seeded with s + i. Until a seed is given it is 0.
    """

    def __init__(
        self, task: Task | str | None = None, *, num_envs: int = 1, split: str = "train", **settings: Any
    ) -> None:
        """Make the rows from a task, a task's import path, or the settings of `TextTask`."""
        self.task, self.split = build_task(task, **settings), split
        self._episodes = Episodes(self.task, split, num_envs)
        self.render_mode = None
        super().__init__(num_envs, self._episodes.observation_space, self._episodes.action_space)
        self._actions_N = np.zeros(num_envs, dtype=np.int64)
        self.seed(0)

    def reset(self) -> VecEnvObs:
        """Begin every row's next item, or as `seed` and `set_options` said."""
        for row, seed in enumerate(self._seeds):
            if seed is not None:
                self._episodes.seed(row, seed)
        self.reset_infos = [self._episodes.begin(row, self._options[row]) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return self._episodes.tokens_NT.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """Take one token for each row."""
        self._actions_N = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Write it."""
        over = self._episodes.step(range(self.num_envs), self._actions_N)
        reward_N = np.zeros(self.num_envs, dtype=np.float32)
        done_N = np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row, ended in over.items():
            reward_N[row], done_N[row] = ended.reward, True
            length = len(self._episodes.actions(row))
            infos[row] = {
                **ended.info,
                "terminal_observation": self._episodes.tokens_NT[row].copy(),
                "TimeLimit.truncated": ended.truncated,
                "episode": {"r": ended.reward, "l": length, "t": 0.0},
            }
            self.reset_infos[row] = self._episodes.begin(row)
        return self._episodes.tokens_NT.copy(), reward_N, done_N, infos

    def action_masks(self) -> np.ndarray:
        """bool [num_envs, V]: which tokens the task's mask allows next."""
        return self._episodes.action_masks()

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The attribute, once for each row."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set it for all rows: they share one core."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call it once for each row; `action_masks`, of all rows at once, is shared out."""
        if method_name == "action_masks":
            allowed_NV = self.action_masks()
            return [allowed_NV[row] for row in self._get_indices(indices)]
        return [getattr(self, method_name)(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """True for Monitor, whose `episode` info the rows give themselves."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def make_sb3_vec_env(env: str, *, num_envs: int = 1, seed: int = 0, **settings: Any) -> TextVecEnv:
    """The registered environment `env` with `num_envs` rows in lockstep, seeded.

    Args:
        env: A registered id whose environments are `TextGenerationEnv`.
        num_envs: Rows.
        seed: Row i takes the stream of items that seed + i orders.
        **settings: Passed to the environment, as `gym.make` would.

    Raises: SettingError if the id is another kind of environment; what the environment raises.
    """
    inner = gym.make(env, **settings).unwrapped
    if not isinstance(inner, TextGenerationEnv):
        raise SettingError("env", env, "give the id of a text environment, such as rlgkd/GroundedSummary-v0")
    vec = TextVecEnv(inner.task, num_envs=num_envs, split=inner.split)
    vec.seed(seed)
    return vec
