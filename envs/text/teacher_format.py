"""How a teacher with a tokenizer of its own reads a task's prompts (rlgkd.lm.own_format has what follows from it)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.text.encoder import TextEncoder
from rlgkd.lm.text_format import end_token
from rlgkd.types import Item, PromptFormat

_log = logging.getLogger(__name__)


def teacher_format(
    own: TextEncoder,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: frozenset[int],
    encode: Callable[[TextEncoder, Item], list[int]],
    *,
    most_replies: int,
    template: str = "",
) -> PromptFormat | None:
    """Return the format of a teacher; None if it reads prompts and replies as its student does.

    One without a chat template reads a chat as its student does, which is logged; where it ends texts with another
    token than the student, that token counts as the student's end.

    Args:
        own: The student's encoder.
        tokenizer: The teacher's.
        end_ids: The teacher's.
        encode: Encodes an item's prompt with an encoder.
        most_replies: How many replies there can be after a prompt.
        template: Of its prompts, which `encode` fills; empty if it sees what the student sees.

    Raises: SettingError if the teacher's chat template has no place for one of the task's messages.
    """
    other, own_end = own, own.answer_end
    if own.template is None or tokenizer.chat_template is not None:
        other = own.with_tokenizer(tokenizer, end_ids)
        own_end = other.answer_end
    else:
        _log.warning("the teacher has no chat template: it reads chats as the student does, %r", own.example())
        if own_end not in end_ids:
            own_end = end_token(tokenizer)
    as_the_student = own.writes_as(other) and own_end == own.answer_end
    if as_the_student and not template:
        return None
    # An end that stands in front of replies is left out where it closes the turn before: by one model perhaps.
    longer_by_reply = max(0, other.around_replies - own.around_replies + 1)
    return PromptFormat(
        encode_prompt=lambda item: encode(other, item),
        encode_reply=None if as_the_student else lambda text, closed: other.reply(text, closed=closed),
        end=own.answer_end,
        own_end=own_end,
        example=own.example(),
        own_example=other.example(),
        longer=0 if as_the_student else other.around_prompts - own.around_prompts + most_replies * longer_by_reply,
        replies=most_replies > 0,
        template=template,
    )
