"""A teacher that reads other prompts than its student: in its own format, or with more in them.

Episodes hold the prompt as the task writes it for the student. A teacher whose template or end token is another one
gets the same item's prompt as its own template writes it, followed by the same actions, so its states at the actions
line up with the student's; replies between several turns are written so too. Where an answer ends with another
token, the teacher's rows of the two tokens are exchanged once, in embedding and head: it is the same model with these
two ids exchanged, and gives the student's end the probability that it has for its own.

A teacher that sees more reads the prompt that a template makes of the item, followed by the student's very ids.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.lm.mixture import Scorer
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.placement import is_dispatched
from rlgkd.lm.text_format import warn_of_other_end
from rlgkd.types import Episode, Item, PromptFormat, Task

_log = logging.getLogger(__name__)


def read_in_own_format(
    task: Task,
    teacher: LanguageModel,
    student: LanguageModel,
    *,
    owner: str,
    name: str,
    teacher_prompt: str | None = None,
) -> None:
    """Let a teacher read the task's prompts in its own format if that is another one, and log both.

    Args:
        task: What both models see.
        teacher: A frozen model that nothing else uses; where its end token is another one, its weights change.
        student: Whose end tokens are known to the task.
        owner: What the student is called in messages.
        name: The teacher's.
        teacher_prompt: Template of the prompts that it reads in the student's place; None is the student's.

    Raises: ModelError for formats that cannot be aligned; SettingError for a template with a brace that holds no name,
        or a task that has no columns to fill it with.
    """
    if not hasattr(task, "format_of"):
        if teacher_prompt is not None:
            remedy = f"the task {task.name} has no columns to fill it with (format_of); leave it out"
            raise SettingError("teacher_prompt", teacher_prompt, remedy)
        warn_of_other_end(task.tokenizer, student.end_ids, teacher.tokenizer, teacher.end_ids, owner=owner)
        return
    more = {} if teacher_prompt is None else {"teacher_prompt": teacher_prompt}
    try:
        found: PromptFormat | None = task.format_of(teacher.tokenizer, teacher.end_ids, **more)
    except SettingError as error:
        if error.field == "teacher_prompt":
            raise
        raise ModelError("teacher", name, f"in its own format, {error.remedy}") from error
    if found is None:
        return
    both = f"it reads prompts as {found.own_example!r}, the {owner} as {found.example!r}"
    if teacher.context < task.max_prompt_tokens + task.max_new_tokens + found.longer:
        remedy = f"{both}, which its context of {teacher.context} tokens is too short for; lower max_prompt_tokens"
        raise ModelError("teacher", name, remedy)
    _adopt(teacher, found, frozenset(getattr(task, "end_ids", student.end_ids)))
    if found.encode_reply is None:  # its format is the student's, and it sees more
        return
    ends = ""
    if found.end != found.own_end:
        mine, theirs = (task.tokenizer.convert_ids_to_tokens(id_) for id_ in (found.end, found.own_end))
        ends = f", and the {owner}'s end {mine!r} counts as its {theirs!r}"
    _log.warning("the teacher has a format of its own: %s%s", both, ends)


def as_read_by(lm: Scorer, episodes: Sequence[Episode]) -> Sequence[Episode]:
    """The episodes with prompts and replies as the model reads them: the same ones unless it has a format of its own.

    Raises: DataError for a text that does not fit its context.
    """
    if lm.format is None:
        return episodes
    return [_read(lm.format, episode, lm.context) for episode in episodes]


def tokens_as_read(
    form: PromptFormat, item: Item, tokens: Sequence[int], actions: Sequence[bool], turns: Sequence[str]
) -> tuple[list[int], list[bool]]:
    """An episode's tokens so far as a model of this format reads them, and which of them are actions.

    Args:
        form: The format.
        item: The prompt's.
        tokens: As the student reads them.
        actions: Which of them are.
        turns: Texts of the policy and of the task in alternation; of one turn alone they may be left out.
    """
    ids = form.encode_prompt(item)
    are_actions = [False] * len(ids)
    start = actions.index(True)
    replies = iter(turns[1::2])
    for is_action, run in groupby(zip(actions[start:], tokens[start:], strict=True), key=itemgetter(0)):
        part = [token for _, token in run]
        if not is_action and form.encode_reply is not None:
            part = form.encode_reply(next(replies), ids[-1] in form.end_ids)
        ids += part
        are_actions += [is_action] * len(part)
    return ids, are_actions


def _read(form: PromptFormat, episode: Episode, context: int) -> Episode:
    tokens, actions = tokens_as_read(
        form, episode.item, episode.tokens_T.tolist(), episode.action_mask_T.tolist(), episode.turns
    )
    if len(tokens) > context:
        remedy = f"as the teacher reads it, its episode has {len(tokens)} tokens, too many for its context of {context}"
        raise DataError("prompt", episode.item.key, f"{remedy}; shorten it")
    action_mask_T = np.array(actions)

    def at_actions(values_T: np.ndarray) -> np.ndarray:
        moved_T = np.zeros(len(tokens), dtype=values_T.dtype)
        moved_T[action_mask_T] = values_T[episode.action_mask_T]
        return moved_T

    return dataclasses.replace(
        episode,
        tokens_T=np.array(tokens, dtype=episode.tokens_T.dtype),
        action_mask_T=action_mask_T,
        logp_T=at_actions(episode.logp_T),
        entropy_T=at_actions(episode.entropy_T),
    )


def _adopt(teacher: LanguageModel, found: PromptFormat, end_ids: frozenset[int]) -> None:
    """Exchange the ends in the model if they differ, and let it have the format; `end_ids` are the student's."""
    exchanged: Mapping[int, int] = {}
    if found.end != found.own_end:
        if found.own_end >= teacher.vocabulary:
            raise ModelError("teacher", found.own_end, "its end token is outside of the student's vocabulary")
        _exchange_tokens(teacher.module, found.end, found.own_end)
        exchanged = {found.end: found.own_end, found.own_end: found.end}
        teacher.end_ids = frozenset(exchanged.get(id_, id_) for id_ in teacher.end_ids)

    def exchange(ids: Sequence[int]) -> list[int]:
        return [exchanged.get(id_, id_) for id_ in ids]

    of_reply = found.encode_reply
    teacher.format = dataclasses.replace(
        found,
        encode_prompt=lambda item: exchange(found.encode_prompt(item)),
        encode_reply=None if of_reply is None else lambda text, closed: exchange(of_reply(text, closed)),
        end_ids=end_ids | teacher.end_ids,
    )


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
