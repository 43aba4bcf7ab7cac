"""The language model as a Stable-Baselines3 policy: observations are token ids, actions the next token.

Its KV cache is a memo: it is used when every row of an observation extends by one token what the memo holds, and
otherwise the rows are run anew. It changes no action beyond rounding. It also remembers where each row's prompt ended,
which an encoder-decoder model needs to know.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rlgkd.lm.model import LanguageModel, Progress
from rlgkd.ops.sampling import sample


@dataclass
class _Memo:
    tokens_BT: np.ndarray
    prompt_B: np.ndarray
    """Length of each row's prompt: of what it held when it was first seen."""
    progress: Progress


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
        self._memo: _Memo | None = None

    def forget(self) -> None:
        """Drop the memo; call it when the weights have changed."""
        self._memo = None

    def set_training_mode(self, mode: bool) -> None:
        """Dropout stays off in training too: the policy that samples is the policy that is scored."""
        super().set_training_mode(False)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        logits_BV = self.language_model.logits(self._last_states(observation.cpu().numpy()))
        if deterministic:
            return logits_BV.argmax(-1)
        uniform_B = torch.from_numpy(self._rng.random(len(logits_BV))).to(logits_BV.device)
        return sample(logits_BV, uniform_B)[0]

    def _last_states(self, tokens_BT: np.ndarray) -> Tensor:
        """[B, H]: the state behind each row's last token."""
        lm, memo, length_B = self.language_model, self._memo, (tokens_BT >= 0).sum(1)
        rows = np.arange(len(tokens_BT))
        newest, before_BT = tokens_BT[rows, length_B - 1], tokens_BT.copy()
        before_BT[rows, length_B - 1] = -1
        goes_on_B, prompt_B = np.zeros(len(rows), dtype=bool), length_B
        if memo is not None and memo.tokens_BT.shape == tokens_BT.shape:
            goes_on_B = (memo.tokens_BT == before_BT).all(1)
            prompt_B = np.where(goes_on_B, memo.prompt_B, length_B)
        if memo is not None and goes_on_B.all():
            progress = memo.progress
            state_BH = lm.advance(torch.from_numpy(newest).to(lm.device), progress)
        else:
            prompts, written = (
                [row[start:end].tolist() for row, start, end in zip(tokens_BT, starts, ends, strict=True)]
                for starts, ends in ((0 * prompt_B, prompt_B), (prompt_B, length_B))
            )
            state_BH, progress = lm.prefill(prompts, written)
        self._memo = _Memo(tokens_BT=tokens_BT, prompt_B=prompt_B, progress=progress)
        return state_BH
