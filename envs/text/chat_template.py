"""A tokenizer's chat template as the pieces that it puts around messages.

Messages are encoded by themselves and put between the pieces, so that nothing in a message becomes a special token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlgkd.errors import SettingError
from rlgkd.types import Message


def chat_pieces(
    tokenizer: PreTrainedTokenizerBase, *roles: str | Message, tools: Sequence[Mapping[str, Any]] = ()
) -> list[list[int]]:
    """Return the ids before, between and after messages of these roles: one piece more than there are roles.

    After a last message that is not the assistant's, the last piece begins the answer. A role may be a message, for
    what else it holds: only one with content has a place between pieces. `tools` are shown as the template shows them.

    Raises: SettingError if there is no template, or one that refuses a role or does not hold each message once.
    """
    if tokenizer.chat_template is None:
        raise SettingError("chat", True, "this tokenizer has no chat template; set chat to false")
    given = [{"role": role, "content": "..."} if isinstance(role, str) else role for role in roles]
    # U+2063, an invisible separator, keeps templates from finding a mark in their own text.
    messages = [
        {**message, "content": f"\u2063{message['role']} {number}\u2063" if message["content"] else ""}
        for number, message in enumerate(given)
    ]
    has_system = any(message["role"] == "system" for message in given)
    field, remedy = ("system", "leave it out") if has_system else ("chat", "set chat to false")
    variables = {"tools": list(tools)} if tools else {}
    try:
        text = str(
            cast(Any, tokenizer).apply_chat_template(
                messages, tokenize=False, add_generation_prompt=given[-1]["role"] != "assistant", **variables
            )
        )
    except TemplateError as error:
        raise SettingError(field, True, f"this chat template refuses it: {error}; {remedy}") from error
    pieces = []
    for message in messages:
        mark = message["content"]
        if not mark:
            continue
        if text.count(mark) != 1:
            role = message["role"]
            raise SettingError(field, True, f"this chat template rewrites the message of the {role}; {remedy}")
        before, text = text.split(mark)
        pieces.append(before)
    pieces.append(text)
    return [cast(list[int], tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]
