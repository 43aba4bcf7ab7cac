"""Reverse-KL regularisation for any RL library: a teacher's log-probability of each token, in the reward.

Reverse KL is minus expected log p_T minus entropy, so with r'_n = (1-alpha) r_n + alpha log p_T(y_n | prefix)

    E[sum_n r'_n] + alpha E[sum_n H(p_S(. | prefix))] = (1-alpha) E[r] - alpha KL(p_S || p_T)

where the KL is that of whole texts (horizon 1) and returns are not discounted (gamma = 1). The entropy is the other
library's to add, and there are two places for it. In the return (maximum-entropy RL; `rlgkd.agents.EntropyReward` for
Stable-Baselines3) the optimum is p_T exp((1-alpha) r / alpha) / Z. As a bonus in the loss, like `ent_coef`, it makes a
token answer for its own entropy but not for that of later ones: the optimum is the same where a text is one token, and
otherwise one that avoids prefixes after which the teacher is undecided.

There is one wrapper for each kind of environment; the one for Stable-Baselines3 is in
rlgkd.envs.wrappers.teacher_reward_sb3. A step costs one batched forward pass of the teacher, from a KV cache. rlgkd's
own agents take `teacher=` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from transformers import PreTrainedModel

from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.envs.vector_env import TextVectorEnv
from rlgkd.envs.wrappers.teacher_mixture import TeacherMixture
from rlgkd.errors import SettingError


class TeacherReward(gym.Wrapper[np.ndarray, np.int64, np.ndarray, np.int64]):
    """Puts a teacher into the reward of `TextGenerationEnv`.

    The info of each step holds the unchanged `task_reward`, and `teacher_logp` in nats.
    """

    def __init__(
        self, env: gym.Env[Any, Any], *, teacher: str | PreTrainedModel, alpha: float, temperature: float = 1.0
    ) -> None:
        """Wrap a text environment.

        Args:
            env: `TextGenerationEnv`, in wrappers that leave its observations as they are.
            teacher: A name, or a loaded model with the environment's tokenizer.
            alpha: Weight of the teacher, in [0, 1].
            temperature: The teacher's temperature.

        Raises: SettingError, ModelError.
        """
        inner = env.unwrapped
        if not isinstance(inner, TextGenerationEnv) or env.observation_space != inner.observation_space:
            raise SettingError(
                "env",
                str(env),
                "wrap a text environment whose observations are its own (a vector environment takes "
                "TeacherRewardVector, Stable-Baselines3's TeacherRewardVecEnv)",
            )
        super().__init__(env)
        self.mixture = TeacherMixture(inner.task, teacher, alpha, temperature)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the environment."""
        observation_T, info = self.env.reset(seed=seed, options=options)
        self._tokens_T = observation_T.copy()  # the caller may write into the array it gets
        return observation_T, info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step the environment, and mix its reward."""
        observation_T, reward, terminated, truncated, info = self.env.step(action)
        logp_1 = self.mixture.logp(self._tokens_T[None], np.asarray([action]))
        self._tokens_T = observation_T.copy()
        info = {**info, "task_reward": float(reward), "teacher_logp": float(logp_1[0])}
        return observation_T, float(self.mixture.reward(np.array([reward]), logp_1)[0]), terminated, truncated, info


class TeacherRewardVector(VectorWrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Puts a teacher into the rewards of `TextVectorEnv`.

    The infos' `task_reward` and `teacher_logp` are arrays with one entry for each row. A row that is reset in a step
    has taken no action: its reward is 0, and the masks of the infos leave it out.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        teacher: str | PreTrainedModel,
        alpha: float,
        temperature: float = 1.0,
    ) -> None:
        """Wrap a `TextVectorEnv`; the other arguments are those of `TeacherReward`."""
        if not isinstance(env.unwrapped, TextVectorEnv):
            raise SettingError("env", str(env), "give a TextVectorEnv, as gym.make_vec makes it")
        super().__init__(env)
        self.mixture = TeacherMixture(env.unwrapped.task, teacher, alpha, temperature)
        self._waiting_N = np.zeros(env.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the environment."""
        observation_NT, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._tokens_NT = observation_NT.copy()
        self._waiting_N &= ~np.asarray((options or {}).get("reset_mask", np.ones_like(self._waiting_N)))
        return observation_NT, infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the environment, and mix its rewards."""
        observation_NT, reward_N, terminated_N, truncated_N, infos = self.env.step(actions)
        acted_N = ~self._waiting_N
        # The action of a row that is reset is ignored, so it may be out of range for the teacher.
        actions_N = np.where(acted_N, np.asarray(actions), 0)
        logp_N = np.where(acted_N, self.mixture.logp(self._tokens_NT, actions_N), 0.0)
        if self.env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            self._waiting_N = terminated_N | truncated_N
        self._tokens_NT = observation_NT.copy()
        infos = {
            **infos,
            "task_reward": reward_N,
            "_task_reward": acted_N,
            "teacher_logp": logp_N,
            "_teacher_logp": acted_N,
        }
        return observation_NT, self.mixture.reward(reward_N, logp_N), terminated_N, truncated_N, infos
