"""The teacher in the reward of a Stable-Baselines3 VecEnv; see rlgkd.envs.wrappers.teacher_reward."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from transformers import PreTrainedModel

from rlgkd.envs.wrappers.teacher_mixture import TeacherMixture
from rlgkd.errors import SettingError


class TeacherRewardVecEnv(VecEnvWrapper):
    """Puts a teacher into the rewards of a VecEnv of text environments.

    Each row's info holds the unchanged `task_reward`, and `teacher_logp` in nats. The `episode` info of a Monitor is
    made before the mixture, so what SB3 logs and `evaluate_policy` returns stays the task's reward.
    """

    def __init__(self, venv: VecEnv, *, teacher: str | PreTrainedModel, alpha: float, temperature: float = 1.0) -> None:
        """Wrap a VecEnv of text environments; the other arguments are those of `TeacherReward`."""
        if not venv.has_attr("task") or venv.observation_space.dtype != np.int64:
            raise SettingError("venv", str(venv), "give a VecEnv of text environments, as make_sb3_vec_env makes it")
        super().__init__(venv)
        self.mixture = TeacherMixture(venv.get_attr("task")[0], teacher, alpha, temperature)

    def reset(self) -> VecEnvObs:
        """Reset the VecEnv."""
        observation_NT = self.venv.reset()
        self._tokens_NT = np.array(observation_NT)  # a copy: the caller may write into the array it gets
        return observation_NT

    def step_async(self, actions: np.ndarray) -> None:
        """Take one token for each row."""
        self._actions_N = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Step the VecEnv, and mix its rewards."""
        observation_NT, reward_N, done_N, infos = self.venv.step_wait()
        logp_N = self.mixture.logp(self._tokens_NT, self._actions_N)
        self._tokens_NT = np.array(observation_NT)
        infos = [
            {**info, "task_reward": float(reward), "teacher_logp": float(logp)}
            for info, reward, logp in zip(infos, reward_N, logp_N, strict=True)
        ]
        return observation_NT, self.mixture.reward(reward_N, logp_N).astype(np.float32), done_N, infos
