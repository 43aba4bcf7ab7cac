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
    several_turns: bool,
) -> PromptFormat | None:
    """Return the format of a teacher; None if it reads prompts as its student does.

    One without a chat template reads a chat as its student does, which is logged; where it ends texts with another
    token than the student, that token counts as the student's end, unless several turns follow, which is logged too.

    Args:
        own: The student's encoder.
        tokenizer: The teacher's.
        end_ids: The teacher's.
        encode: Encodes an item's prompt with an encoder.
        several_turns: Whether replies follow the prompt.

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
            if several_turns:
                mine, theirs = (tokenizer.convert_ids_to_tokens(id_) for id_ in (own.answer_end, own_end))
                _log.warning(
                    "the teacher ends a text with %r, and gives %r, the student's end, little probability", theirs, mine
                )
                return None
    if own.writes_as(other) and own_end == own.answer_end:
        return None
    return PromptFormat(
        encode_prompt=lambda item: encode(other, item),
        end=own.answer_end,
        own_end=own_end,
        example=own.example(),
        own_example=other.example(),
        longer=other.around_prompts - own.around_prompts,
        aligned=not several_turns,
    )
