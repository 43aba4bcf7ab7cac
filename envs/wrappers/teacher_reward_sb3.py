"""The teacher's word in the reward, for a Stable-Baselines3 VecEnv; see rlgkd.envs.wrappers.teacher_reward."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from transformers import PreTrainedModel

from rlgkd.envs.wrappers.teacher_reward import Mixture
from rlgkd.errors import SettingError


class TeacherRewardVecEnv(VecEnvWrapper):
    """Each row's info holds `task_reward`, untouched, and `teacher_logp` in nats.

    The `episode` that a Monitor below adds stays the task's, and with it what SB3 logs and `evaluate_policy` returns.
    """

    def __init__(self, venv: VecEnv, *, teacher: str | PreTrainedModel, alpha: float, temperature: float = 1.0) -> None:
        """As of `TeacherReward`, for a VecEnv of text environments."""
        if not venv.has_attr("task") or venv.observation_space.dtype != np.int64:
            raise SettingError("venv", str(venv), "give a VecEnv of text environments, as make_sb3_vec_env makes it")
        super().__init__(venv)
        self.mixture = Mixture(venv.get_attr("task")[0], teacher, alpha, temperature)

    def reset(self) -> VecEnvObs:
        """As the VecEnv's."""
        observation_NT = self.venv.reset()
        self._tokens_NT = np.array(observation_NT)  # a copy: the caller may write into what it is given
        return observation_NT

    def step_async(self, actions: np.ndarray) -> None:
        """Take one token for each row."""
        self._actions_N = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """As the VecEnv's, with the mixed rewards."""
        observation_NT, reward_N, done_N, infos = self.venv.step_wait()
        logp_N = self.mixture.logp(self._tokens_NT, self._actions_N)
        self._tokens_NT = np.array(observation_NT)
        infos = [
            {**info, "task_reward": float(reward), "teacher_logp": float(logp)}
            for info, reward, logp in zip(infos, reward_N, logp_N, strict=True)
        ]
        return observation_NT, self.mixture.reward(reward_N, logp_N).astype(np.float32), done_N, infos
