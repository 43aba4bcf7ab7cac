"""Text environments for Stable-Baselines3: a VecEnv whose rows advance in lockstep.

Stock agents of Stable-Baselines3 step the rows, one token at a time. rlgkd's own agents never step them: they take the
VecEnv's `task` and `split` and decode whole texts themselves, which gives the same texts and rewards much faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rlgkd.envs.episodes import Episodes
from rlgkd.envs.registry import registered_settings
from rlgkd.envs.task import TextTask
from rlgkd.envs.task_makers import build_task
from rlgkd.errors import SettingError
from rlgkd.types import Task


class TextVecEnv(VecEnv):
    """`num_envs` episodes in lockstep; a row whose episode ends begins its next item within the same step.

    The info of a row that ended holds `terminal_observation` and a Monitor's `episode`. As in SB3's own VecEnvs, `seed`
    and `set_options` take effect at the next `reset`: row i seeded with s equals the scalar environment seeded with
    s + i. Until a seed is given it is 0.
    """

    task: Task
    """The prompts, tokenizer, limits and reward of all rows."""
    split: str
    """The split that the episodes are from."""

    def __init__(
        self, task: Task | str | None = None, *, num_envs: int = 1, split: str = "train", **settings: Any
    ) -> None:
        """Make the rows from a task, a task's import path, or the settings of `TextTask`."""
        self.task = build_task(task, TextTask, **settings)
        self.split = split
        self._episodes = Episodes(self.task, split, num_envs)
        self.render_mode = None  # VecEnv's constructor asks for it
        super().__init__(num_envs, self._episodes.observation_space, self._episodes.action_space)
        self._actions_N = np.zeros(num_envs, dtype=np.int64)
        self.seed(0)

    def reset(self) -> VecEnvObs:
        """Begin every row's next item, or the one that `seed` and `set_options` chose."""
        for row, seed in enumerate(self._seeds):
            if seed is not None:
                self._episodes.seed(row, seed)
        self.reset_infos = [self._episodes.reset(row, self._options[row]) for row in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return self._episodes.tokens_NT.copy()  # a copy: rollout buffers keep it

    def step_async(self, actions: np.ndarray) -> None:
        """Take one token for each row."""
        self._actions_N = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Append it."""
        outcomes = self._episodes.step(range(self.num_envs), self._actions_N)
        reward_N = np.zeros(self.num_envs, dtype=np.float32)
        done_N = np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row, outcome in outcomes.items():
            reward_N[row] = outcome.reward
            done_N[row] = True
            length = len(self._episodes.actions(row))  # before the reset, which begins the row's next text
            infos[row] = {
                **outcome.info,
                "terminal_observation": self._episodes.tokens_NT[row].copy(),
                "TimeLimit.truncated": outcome.truncated,
                "episode": {"r": outcome.reward, "l": length, "t": 0.0},
            }
            self.reset_infos[row] = self._episodes.reset(row)
        return self._episodes.tokens_NT.copy(), reward_N, done_N, infos

    def action_masks(self) -> np.ndarray:
        """bool [num_envs, V]: which tokens the task's mask allows next."""
        return self._episodes.action_masks()

    def close(self) -> None:
        """Do nothing: nothing is held open."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return the attribute once for each row."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set the attribute for all rows, whatever the indices: the rows share one object."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call the method once for each row; `action_masks` is called once, and each row gets its own mask."""
        if method_name == "action_masks":
            allowed_NV = self.action_masks()
            return [allowed_NV[row] for row in self._get_indices(indices)]
        return [getattr(self, method_name)(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """Return True for Monitor, whose `episode` info the rows give themselves."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]


def make_sb3_vec_env(env: str, *, num_envs: int = 1, seed: int = 0, **settings: Any) -> TextVecEnv:
    """Make the registered environment `env` with `num_envs` rows in lockstep, seeded.

    Args:
        env: A registered id of a text environment.
        num_envs: Rows.
        seed: Row i takes the stream of items that seed + i orders.
        **settings: Passed to the environment, as `gym.make` would.

    Raises: SettingError if the id is another kind of environment; what the environment raises.
    """
    registered = registered_settings(env)
    if registered is None:
        vec = _of_another_class(env, num_envs, settings)
    else:
        vec = TextVecEnv(num_envs=num_envs, **{**registered, **settings})
    vec.seed(seed)
    return vec


def _of_another_class(env: str, num_envs: int, settings: dict[str, Any]) -> TextVecEnv:
    """The rows of an id that is not registered with `TextGenerationEnv` itself.

    It may be a subclass, or a function that returns one; then only the environment knows its task, and is made for it.
    """
    made = gym.make(env, **settings).unwrapped
    task = getattr(made, "task", None)
    if not isinstance(task, Task):
        raise SettingError("env", env, "give the id of a text environment, such as rlgkd/GroundedSummary-v0")
    return TextVecEnv(task, num_envs=num_envs, split=getattr(made, "split", "train"))
