"""Conversations, right answers and tool schemas as data sets hold them.

A conversation is a list of {role, content} or, as ShareGPT has it, of {from, value}. A last turn of the assistant is
the answer to what stands before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlgkd.errors import DataError
from rlgkd.types import Message

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's roles -> those of chat templates; other roles are called the same."""


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and all(isinstance(message, Mapping) and ("role" in message or "from" in message) for message in value)
    )


def read_conversation(field: str, key: str, given: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Return the messages, each with a `role` and a `content`; keys that are null are left out, as Arrow adds them.

    Raises: DataError for a message without role or text.
    """
    return tuple(_message(field, f"{key}, message {number}", message) for number, message in enumerate(given, 1))


def split_answer(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """Return the messages before a last turn of the assistant, and its text; without such a turn, all and no text.

    Examples:
        >>> split_answer(({"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}))
        (({'role': 'user', 'content': '1 + 1?'},), '2')
    """
    if messages[-1]["role"] != "assistant":
        return messages, ""
    return messages[:-1], messages[-1]["content"]


def shown(messages: Sequence[Message]) -> str:
    """Return a conversation as text: the one message of a user's as it is, else each message after its role."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    texts = [message["content"] or json.dumps(message.get("tool_calls", "")) for message in messages]
    return "\n\n".join(f"{message['role']}: {text}" for message, text in zip(messages, texts, strict=True))


def read_tools(key: str, given: Any) -> tuple[Mapping[str, Any], ...]:
    """Return JSON schemas of tools, from a list of them or the JSON of such a list; none for null.

    Raises: DataError for anything else.
    """
    remedy = "give a list of JSON schemas, such as transformers.utils.get_json_schema returns, or its JSON"
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError as error:
            raise DataError("tools", key, f"it is no JSON ({error}); {remedy}") from error
    if given is None:
        return ()
    if not isinstance(given, Sequence) or not all(isinstance(tool, Mapping) for tool in given):
        raise DataError("tools", key, f"it holds a {type(given).__name__}; {remedy}")
    return tuple(without_nulls(tool) for tool in given)


def without_nulls(value: Any) -> Any:
    """Return a value without the null entries of its mappings: Arrow gives all rows the keys that one has."""
    if isinstance(value, Mapping):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(inner) for inner in value]
    return value


def _message(field: str, where: str, given: Mapping[str, Any]) -> Message:
    if "role" not in given:
        given = {"role": SHAREGPT_ROLES.get(given["from"], given["from"]), "content": given.get("value")}
    role, content = given["role"], given.get("content")
    if not isinstance(role, str) or not role:
        raise DataError(field, where, f"its role is {role!r}; give user, assistant, system or tool")
    extra = {name: without_nulls(value) for name, value in given.items() if name not in ("role", "content")}
    extra = {name: value for name, value in extra.items() if value is not None}
    if content is None and "tool_calls" in extra:
        content = ""
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_text_part(field, where, part) for part in content)
    if not isinstance(content, str):
        raise DataError(field, where, f"its content is {content!r:.40}; give a text")
    return {"role": role, "content": content, **extra}


def _text_part(field: str, where: str, part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise DataError(field, where, f"a part of its content is {part!r:.60}; only texts can be read")
    return text
