"""Reverse-KL regularisation for any RL library: a teacher's log-probability of each token, in the reward.

Reverse KL is minus expected log p_T minus entropy, so with r'_n = (1-alpha) r_n + alpha log p_T(y_n | prefix)

    E[sum_n r'_n] + alpha E[sum_n H(p_S(. | prefix))] = (1-alpha) E[r] - alpha KL(p_S || p_T)

where the KL is that of whole texts (horizon 1) and returns are not discounted (gamma = 1). The entropy is the other
library's to add, and there are two places for it. In the return (maximum-entropy RL; `rlgkd.agents.EntropyReward` for
Stable-Baselines3) the optimum is p_T exp((1-alpha) r / alpha) / Z. As a bonus in the loss, as `ent_coef` is, a token
answers for its own entropy but not for that of later ones: the same optimum where a text is one token, and else one
that shuns prefixes behind which the teacher is undecided.

One wrapper for each kind of environment, each with one batched pass of the teacher a step, from a KV cache; that of
Stable-Baselines3 is in rlgkd.envs.wrappers.teacher_reward_sb3. rlgkd's own agents take `teacher=` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from transformers import PreTrainedModel

from rlgkd.envs.text_env import TextGenerationEnv
from rlgkd.envs.vector_env import TextVectorEnv
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.model import check_same_vocabulary
from rlgkd.lm.prefix_cache import PrefixCache
from rlgkd.ops.policy_loss import log_probability
from rlgkd.types import Task


class Mixture:
    """A teacher and the weight of its word in the reward."""

    def __init__(self, task: Task, teacher: str | PreTrainedModel, alpha: float, temperature: float) -> None:
        """Open the teacher, on the GPU if there is one and it is given by name.

        Raises: SettingError for alpha outside [0, 1] or temperature <= 0; ModelError for a teacher that is missing, has
            another vocabulary or a context too short for the task.
        """
        if not 0 <= alpha <= 1:
            raise SettingError("alpha", alpha, "give a number in [0, 1]")
        if isinstance(teacher, str):
            tokenizer = load_tokenizer(teacher)
            check_same_vocabulary(task.tokenizer, tokenizer, owner="environment")
            teacher = load(teacher, device="cuda" if torch.cuda.is_available() else "cpu")
        self.lm = language_model(teacher, task.tokenizer, temperature=temperature)
        room = task.max_prompt_tokens + task.max_new_tokens
        if self.lm.context < room:
            raise ModelError(
                "teacher", teacher.config.name_or_path,
                f"its context of {self.lm.context} tokens is shorter than the environment's {room}",
            )  # fmt: skip
        self.alpha, self.reader = alpha, PrefixCache(self.lm)

    def logp(self, tokens_NT: np.ndarray, actions_N: np.ndarray) -> np.ndarray:
        """[N], nats: the teacher's log-probability of each action behind its row."""
        with torch.no_grad():
            logits_NV = self.lm.logits(self.reader.last_states(torch.from_numpy(tokens_NT)))
            logp_N = log_probability(logits_NV, torch.from_numpy(actions_N).to(logits_NV.device))
        values_N: np.ndarray = logp_N.double().cpu().numpy()
        return values_N

    def reward(self, task_reward_N: np.ndarray, logp_N: np.ndarray) -> np.ndarray:
        """[N]: (1-alpha) r + alpha log p_T."""
        mixed_N: np.ndarray = (1 - self.alpha) * task_reward_N + self.alpha * logp_N
        return mixed_N


class TeacherReward(gym.Wrapper[np.ndarray, np.int64, np.ndarray, np.int64]):
    """The scalar environment's. Each step's info holds `task_reward`, untouched, and `teacher_logp` in nats."""

    def __init__(
        self, env: gym.Env[Any, Any], *, teacher: str | PreTrainedModel, alpha: float, temperature: float = 1.0
    ) -> None:
        """Wrap a text environment.

        Args:
            env: `TextGenerationEnv`, in wrappers that leave its observations as they are.
            teacher: A name, or a loaded model with the environment's tokenizer.
            alpha: Weight of the teacher, in [0, 1].
            temperature: The teacher's.

        Raises: SettingError, ModelError.
        """
        inner = env.unwrapped
        if not isinstance(inner, TextGenerationEnv) or env.observation_space != inner.observation_space:
            raise SettingError(
                "env", str(env), "wrap a text environment whose observations are its own (a vector environment takes "
                "TeacherRewardVector, Stable-Baselines3's TeacherRewardVecEnv)",
            )  # fmt: skip
        super().__init__(env)
        self.mixture = Mixture(inner.task, teacher, alpha, temperature)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's."""
        observation_T, info = self.env.reset(seed=seed, options=options)
        self._tokens_T = observation_T.copy()  # the caller may write into what it is given
        return observation_T, info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As the environment's, with the mixed reward."""
        observation_T, reward, terminated, truncated, info = self.env.step(action)
        logp_1 = self.mixture.logp(self._tokens_T[None], np.asarray([action]))
        self._tokens_T = observation_T.copy()
        info = {**info, "task_reward": float(reward), "teacher_logp": float(logp_1[0])}
        return observation_T, float(self.mixture.reward(np.array([reward]), logp_1)[0]), terminated, truncated, info


class TeacherRewardVector(VectorWrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """The lockstep vector environment's; the infos' `task_reward` and `teacher_logp` are arrays, one entry a row.

    A row that begins anew at this step has written nothing: its reward is 0, and the infos' masks leave it out.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        teacher: str | PreTrainedModel,
        alpha: float,
        temperature: float = 1.0,
    ) -> None:
        """As of `TeacherReward`, for a `TextVectorEnv`."""
        if not isinstance(env.unwrapped, TextVectorEnv):
            raise SettingError("env", str(env), "give a TextVectorEnv, as gym.make_vec makes it")
        super().__init__(env)
        self.mixture = Mixture(env.unwrapped.task, teacher, alpha, temperature)
        self._waiting_N = np.zeros(env.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's."""
        observation_NT, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._tokens_NT = observation_NT.copy()
        self._waiting_N &= ~np.asarray((options or {}).get("reset_mask", np.ones_like(self._waiting_N)))
        return observation_NT, infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As the environment's, with the mixed rewards."""
        observation_NT, reward_N, terminated_N, truncated_N, infos = self.env.step(actions)
        wrote_N = ~self._waiting_N
        written_N = np.where(wrote_N, np.asarray(actions), 0)  # what is given to the others may be anything
        logp_N = np.where(wrote_N, self.mixture.logp(self._tokens_NT, written_N), 0.0)
        if self.env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            self._waiting_N = terminated_N | truncated_N
        self._tokens_NT = observation_NT.copy()
        infos = {
            **infos, "task_reward": reward_N, "_task_reward": wrote_N, "teacher_logp": logp_N, "_teacher_logp": wrote_N
        }  # fmt: skip
        return observation_NT, self.mixture.reward(reward_N, logp_N), terminated_N, truncated_N, infos
