"""How a teacher with a tokenizer of its own reads a task's prompts (rlgkd.lm.own_format has what follows from it)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from rlgkd.envs.text.encoder import TextEncoder
from rlgkd.lm.text_format import end_token
from rlgkd.lm.vocabulary import same_vocabulary
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
    """Return the format of a teacher; None if it reads prompts and replies as its student does, in the same tokens.

    One without a chat template reads a chat as its student does or, in other tokens, as plain text, which is logged;
    where it ends texts with another token than the student, that token counts as the student's end.

    Args:
        own: The student's encoder.
        tokenizer: The teacher's.
        end_ids: The teacher's.
        encode: Encodes an item's prompt with an encoder.
        most_replies: How many replies there can be after a prompt.
        template: That of its prompts, which `encode` fills; empty if it sees what the student sees.

    Raises: SettingError if the teacher's chat template has no place for one of the task's messages.
    """
    same_tokens = same_vocabulary(own.tokenizer, tokenizer)
    if not same_tokens and own.template is not None and tokenizer.chat_template is None:
        return _plain_format(own, own.with_tokenizer(tokenizer, end_ids, plain=True), most_replies=most_replies)
    other, own_end = own, own.answer_end
    if own.template is None or tokenizer.chat_template is not None:
        other = own.with_tokenizer(tokenizer, end_ids)
        own_end = other.answer_end
    else:
        _log.warning("the teacher has no chat template: it reads chats as the student does, %r", own.example())
        if own_end not in end_ids:
            own_end = end_token(tokenizer)
    as_the_student = same_tokens and own.writes_as(other) and own_end == own.answer_end
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


def _plain_format(own: TextEncoder, other: TextEncoder, *, most_replies: int) -> PromptFormat:
    """How a teacher without a chat template, and with other tokens than its student, reads chats: as their texts."""
    _log.warning("the teacher has no chat template: it reads chats as plain text, each message a paragraph")

    def encode_prompt(item: Item) -> list[int]:
        contents = [message["content"] for message in item.messages] or [item.prompt]
        texts = contents if item.messages and item.messages[0]["role"] == "system" else [own.system, *contents]
        return other.prompt(item.key, "\n\n".join(filter(None, texts)) + "\n")

    return PromptFormat(
        encode_prompt=encode_prompt,
        encode_reply=lambda text, closed: other.plain("reply", text[:40], f"\n{text}\n"),
        end=own.answer_end,
        own_end=other.answer_end,
        example=own.example(),
        own_example="...\n",
        longer=0,
        replies=most_replies > 0,
    )
