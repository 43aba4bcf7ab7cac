"""A tokenizer's chat template as the pieces that it puts around messages.

Messages are encoded by themselves and put between the pieces, so that nothing in a message becomes a special token.
"""

from __future__ import annotations

from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlgkd.errors import SettingError


def chat_pieces(tokenizer: PreTrainedTokenizerBase, *roles: str) -> list[list[int]]:
    """Return the ids before, between and after messages of these roles: one piece more than there are roles.

    After a last message of the user, the last piece begins the answer.

    Raises: SettingError if there is no template, or one that refuses a role or does not hold each message once.
    """
    if tokenizer.chat_template is None:
        raise SettingError("chat", True, "this tokenizer has no chat template; set chat to false")
    # U+2063, an invisible separator, keeps templates from finding a mark in their own text.
    marks = [f"\u2063{role} {number}\u2063" for number, role in enumerate(roles)]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    field, remedy = ("system", "leave it out") if "system" in roles else ("chat", "set chat to false")
    try:
        text = str(
            cast(Any, tokenizer).apply_chat_template(
                messages, tokenize=False, add_generation_prompt=roles[-1] == "user"
            )
        )
    except TemplateError as error:
        raise SettingError(field, True, f"this chat template refuses it: {error}; {remedy}") from error
    pieces = []
    for role, mark in zip(roles, marks, strict=True):
        if text.count(mark) != 1:
            raise SettingError(field, True, f"this chat template rewrites the message of the {role}; {remedy}")
        before, text = text.split(mark)
        pieces.append(before)
    pieces.append(text)
    return [cast(list[int], tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]
