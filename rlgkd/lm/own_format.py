"""A teacher that reads prompts in its own format: with its own chat template, and its own end of an answer.

Episodes hold the prompt as the task writes it for the student. A teacher whose template or end token is another one
gets the same item's prompt as its own template writes it, followed by the same actions, so its states at the actions
line up with the student's. Where an answer ends with another token, the teacher's rows of the two tokens are exchanged
once, in embedding and head: it is the same model with these two ids exchanged, and gives the student's end the
probability that it has for its own.

Only texts of one turn line up: of several, each reply would stand in another format as well.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.placement import is_dispatched
from rlgkd.lm.text_format import warn_of_other_end
from rlgkd.types import Episode, Item, PromptFormat, Task

_log = logging.getLogger(__name__)


def read_in_own_format(task: Task, teacher: LanguageModel, student: LanguageModel, *, owner: str, name: str) -> None:
    """Let a teacher read the task's prompts in its own format if that is another one, and log both.

    Args:
        task: What both models see.
        teacher: A frozen model that nothing else uses; where its end token is another one, its weights change.
        student: Whose end tokens are known to the task.
        owner: What the student is called in messages.
        name: The teacher's.

    Raises: ModelError for formats that cannot be aligned.
    """
    if not hasattr(task, "format_of"):
        warn_of_other_end(task.tokenizer, student.end_ids, teacher.tokenizer, teacher.end_ids, owner=owner)
        return
    try:
        found: PromptFormat | None = task.format_of(teacher.tokenizer, teacher.end_ids)
    except SettingError as error:
        raise ModelError("teacher", name, f"in its own format, {error.remedy}") from error
    if found is None:
        return
    both = f"it reads prompts as {found.own_example!r}, the {owner} as {found.example!r}"
    if not found.aligned:
        raise ModelError("teacher", name, f"{both}, and several turns cannot be aligned; give one of the same format")
    if teacher.context < task.max_prompt_tokens + task.max_new_tokens + found.longer:
        remedy = f"{both}, which its context of {teacher.context} tokens is too short for; lower max_prompt_tokens"
        raise ModelError("teacher", name, remedy)
    _adopt(teacher, found)
    ends = ""
    if found.end != found.own_end:
        mine, theirs = (task.tokenizer.convert_ids_to_tokens(id_) for id_ in (found.end, found.own_end))
        ends = f", and the {owner}'s end {mine!r} counts as its {theirs!r}"
    _log.warning("the teacher has a format of its own: %s%s", both, ends)


def as_read_by(lm: LanguageModel, episodes: Sequence[Episode]) -> Sequence[Episode]:
    """The episodes with their prompts as the model reads them: the same ones unless it has a format of its own.

    Raises: DataError for a text that does not fit its context.
    """
    if lm.format is None:
        return episodes
    return [_with_prompt(episode, lm.format.encode_prompt(episode.item), lm.context) for episode in episodes]


def _with_prompt(episode: Episode, prompt: Sequence[int], context: int) -> Episode:
    start = int(episode.action_mask_T.argmax())
    assert episode.action_mask_T[start:].all(), "formats are aligned in one turn alone"
    if len(prompt) + len(episode.tokens_T) - start > context:
        remedy = f"as the teacher reads it, it has {len(prompt)} tokens, too many for its context of {context}"
        raise DataError("prompt", episode.item.key, f"{remedy}; shorten it")

    def joined(before: np.ndarray, values_T: np.ndarray) -> np.ndarray:
        return np.concatenate([before.astype(values_T.dtype), values_T[start:]])

    nothing = np.zeros(len(prompt))
    return dataclasses.replace(
        episode,
        tokens_T=joined(np.array(prompt), episode.tokens_T),
        action_mask_T=joined(nothing, episode.action_mask_T),
        logp_T=joined(nothing, episode.logp_T),
        entropy_T=joined(nothing, episode.entropy_T),
    )


def _adopt(teacher: LanguageModel, found: PromptFormat) -> None:
    exchanged: Mapping[int, int] = {}
    if found.end != found.own_end:
        if found.own_end >= teacher.vocabulary:
            raise ModelError("teacher", found.own_end, "its end token is outside of the student's vocabulary")
        _exchange_tokens(teacher.module, found.end, found.own_end)
        exchanged = {found.end: found.own_end, found.own_end: found.end}
        teacher.end_ids = frozenset(exchanged.get(id_, id_) for id_ in teacher.end_ids)

    def encode_prompt(item: Item) -> list[int]:
        return [exchanged.get(id_, id_) for id_ in found.encode_prompt(item)]

    teacher.format = dataclasses.replace(found, encode_prompt=encode_prompt)


@torch.no_grad()
def _exchange_tokens(module: PreTrainedModel, one: int, other: int) -> None:
    """Exchange two tokens in a model: their rows in the embedding, and in the head's weight and bias.

    Raises: ModelError for a model with other tables of tokens, one that appends end tokens by itself, or one that
    is spread over devices or has these rows quantised.
    """
    embedding: Any = module.get_input_embeddings()
    head: Any = module.get_output_embeddings()
    tables = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    others = [t for t in tables if t.weight is not embedding.weight and t.num_embeddings == embedding.num_embeddings]
    parameters = {id(p): p for p in (embedding.weight, head.weight, head.bias) if p is not None}  # tied ones once
    quantised = not all(p.is_floating_point() for p in parameters.values())
    if others or quantised or module.config.is_encoder_decoder or is_dispatched(module):
        remedy = "its end token is another than the student's, and cannot be exchanged in it; give one with the same"
        raise ModelError("teacher", module.config.model_type, remedy)
    for parameter in parameters.values():
        parameter[[one, other]] = parameter[[other, one]]
