"""The mixture of a task's reward and a teacher's log-probability that the TeacherReward wrappers give."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.devices import best_device
from rlgkd.dialogue import task_end_ids
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.lora import unwrapped
from rlgkd.lm.prefix_cache import PrefixCache
from rlgkd.lm.text_format import model_end_ids, warn_of_other_end
from rlgkd.lm.vocabulary import shared_vocabulary
from rlgkd.ops.policy_loss import log_probability
from rlgkd.types import Task

_log = logging.getLogger(__name__)


class TeacherMixture:
    """A teacher and its weight in the reward; it runs over each row's new tokens only, from a KV cache."""

    def __init__(self, task: Task, teacher: str | PreTrainedModel, alpha: float, temperature: float) -> None:
        """Open the teacher; one that is given by name goes to the GPU if there is one.

        Raises: SettingError for alpha outside [0, 1] or temperature <= 0; ModelError for a teacher that is missing, has
            another vocabulary or a context too short for the task.
        """
        weight: Any = alpha
        if not isinstance(weight, int | float | np.number) or not 0 <= weight <= 1:
            raise SettingError("alpha", alpha, "give a number in [0, 1]")
        if isinstance(teacher, str):
            tokenizer = load_tokenizer(teacher)
            shared_vocabulary(task.tokenizer, tokenizer, owner="environment")
            teacher = load(teacher, merge_adapters=True, device=best_device())
            _warn_of_other_format(task, tokenizer, model_end_ids(teacher, tokenizer))
        else:
            teacher = unwrapped(teacher)
        self.lm = language_model(teacher, task.tokenizer, temperature=temperature)
        needed = task.max_prompt_tokens + task.max_new_tokens
        if self.lm.context < needed:
            raise ModelError(
                "teacher",
                teacher.config.name_or_path,
                f"its context of {self.lm.context} tokens is shorter than the environment's {needed}",
            )
        self.alpha = alpha
        self._prefix_cache = PrefixCache(self.lm)

    def logp(self, tokens_NT: np.ndarray, actions_N: np.ndarray) -> np.ndarray:
        """[N], nats: the teacher's log-probability of each action after its row's tokens (padded with -1)."""
        with torch.no_grad():
            logits_NV = self.lm.logits(self._prefix_cache.last_states(torch.from_numpy(tokens_NT)))
            logp_N = log_probability(logits_NV, torch.from_numpy(actions_N).to(logits_NV.device))
        values_N: np.ndarray = logp_N.cpu().double().numpy()
        return values_N

    def reward(self, task_reward_N: np.ndarray, logp_N: np.ndarray) -> np.ndarray:
        """[N]: (1-alpha) r + alpha log p_T."""
        mixed_N: np.ndarray = (1 - self.alpha) * task_reward_N + self.alpha * logp_N
        return mixed_N


def _warn_of_other_format(task: Task, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> None:
    """Log that the teacher's format is another one: what is stepped is one text, which it reads as it is."""
    warn_of_other_end(task.tokenizer, task_end_ids(task), tokenizer, end_ids, owner="environment")
    try:
        found = task.format_of(tokenizer, end_ids) if hasattr(task, "format_of") else None
    except SettingError as error:  # here its template writes nothing, so one that refuses the task's chats is no error
        _log.warning("the teacher sees chats in the environment's format; its own chat template: %s", error.remedy)
        return
    if found is not None and found.example != found.own_example:
        _log.warning(
            "the teacher's chat template differs from the environment's: it sees chats in a format that it was not "
            "trained on, %r, where its own is %r; give a teacher with the same template",
            found.example,
            found.own_example,
        )
