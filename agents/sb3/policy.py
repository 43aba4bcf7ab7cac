"""The language model as a Stable-Baselines3 policy: observations are token ids, actions the next token."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.prefix_cache import PrefixCache
from rlgkd.ops.sampling import sample
from rlgkd.sharding import is_sharded


class LanguageModelPolicy(BasePolicy):
    """Samples the next token of each observation from the language model (or takes the likeliest)."""

    def __init__(
        self,
        observation_space: gym.Space[np.ndarray],
        action_space: gym.Space[np.int64],
        language_model: LanguageModel,
        *,
        seed: int = 0,
    ) -> None:
        """Wrap the model; `seed` is that of the stream `predict` samples from."""
        super().__init__(observation_space, action_space)
        self.language_model = language_model
        self.module = language_model.module
        self.optimizer: torch.optim.Optimizer
        self._rng = np.random.default_rng(seed)
        self.reader = PrefixCache(language_model)

    def forget(self) -> None:
        """Drop the reader's memo; call it when the weights have changed."""
        self.reader.clear()

    def set_training_mode(self, mode: bool) -> None:
        """Dropout stays off in training too: the policy that samples is the policy that is scored."""
        super().set_training_mode(False)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        if is_sharded(self.module):
            remedy = "processes predict in other numbers of steps; take agent.generate or agent.evaluate, or none"
            raise SettingError("sharding", "predict", remedy)
        logits_BV = self.language_model.logits(self.reader.last_states(observation))
        if deterministic:
            return logits_BV.argmax(-1)
        uniform_B = torch.from_numpy(self._rng.random(len(logits_BV))).to(logits_BV.device)
        return sample(logits_BV, uniform_B)[0]
