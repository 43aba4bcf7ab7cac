"""An item as a teacher reads it that sees more than the student: with a prompt that a template makes of its columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from rlgkd.envs.data.rows import template
from rlgkd.errors import DataError
from rlgkd.types import SIBLING, Item, reads_sibling

FIELD = "teacher_prompt"
SIBLING_PROMPT = "A right answer: {sibling}\n\n{prompt}"
"""The template that `sibling` alone stands for; the prompt comes last, for it may lead on to the answer."""


def hinted_by(text: str) -> Callable[[Item], Item]:
    """Return a function that gives an item the prompt that a teacher reads.

    `text` is a column's name or a text with columns in braces, as `rlgkd.envs.data.rows.template` takes it. Besides the
    item's columns there are `prompt`, in a conversation the user's last message, which the text replaces; `reference`,
    if the item has one; and `sibling`, a right text of the same group. An item that lacks the sibling stays as it is.
    `sibling` alone stands for SIBLING_PROMPT.

    Raises: SettingError for a brace that holds no name. When called, DataError for a column that is missing, is null,
        or holds no text or number.

    Examples:
        >>> item = Item(key="x:1", prompt="1 + 1?", columns={"hint": "an even number"})
        >>> hinted_by("{prompt} It is {hint}.")(item).prompt
        '1 + 1? It is an even number.'
    """
    fill, needs_sibling = template(FIELD, SIBLING_PROMPT if text == SIBLING else text), reads_sibling(text)

    def hinted(item: Item) -> Item:
        if needs_sibling and SIBLING not in item.columns:
            return item
        if not item.messages:
            return dataclasses.replace(item, prompt=fill(item.key, _row(item, item.prompt)))
        asked = [number for number, message in enumerate(item.messages) if message["role"] == "user"]
        if not asked:
            raise DataError(FIELD, item.key, "its conversation has no message of the user; leave teacher_prompt out")
        messages = list(item.messages)
        content = fill(item.key, _row(item, messages[asked[-1]]["content"]))
        messages[asked[-1]] = {**messages[asked[-1]], "content": content}
        return dataclasses.replace(item, messages=tuple(messages))

    return hinted


def _row(item: Item, prompt: str) -> dict[str, Any]:
    reference = {"reference": item.reference} if item.reference else {}
    return {**item.columns, **reference, "prompt": prompt}
