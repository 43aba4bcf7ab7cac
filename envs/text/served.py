"""Compares the token ids that are trained with those that a chat template makes where the model is served.

Messages are encoded apart from what stands around them, and stay as they are. Most tokenizers do not notice the former,
but many templates trim messages, and some drop the thoughts of earlier turns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rlgkd.envs.text.chat_template import ChatTemplate
from rlgkd.errors import SettingError
from rlgkd.types import Message

_log = logging.getLogger(__name__)


class ServedComparison:
    """Logs the first conversation whose ids differ, of those that are compared."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._watching = False

    def watch(self) -> None:
        """From now on compare texts that the template may rewrite, until one differs."""
        self._watching = True

    def watches(self, texts: Sequence[str]) -> bool:
        """Whether one of these texts should be compared: a template may trim it, or drop thoughts from it."""
        return self._watching and any(text != text.strip() or "</think>" in text for text in texts)

    def differs(self, messages: Sequence[Message], trained: list[int], tools: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Whether the template makes other ids of a conversation; False if it refuses it, for then none is served."""
        return self._served(messages, tools) not in (None, trained)

    def report(self, messages: Sequence[Message], trained: list[int], tools: Sequence[Mapping[str, Any]] = ()) -> bool:
        """Log a conversation whose ids differ, and return whether they do."""
        served = self._served(messages, tools)
        if served is None or served == trained:
            return False
        self._watching = False  # one is enough
        names = self._template.tokenizer.convert_ids_to_tokens
        _log.warning(
            "chat: with this template a conversation such as %r is trained as %s but served by apply_chat_template as "
            "%s: texts are trained as they are, so serve them by the same tokens, or give a template that keeps "
            "messages as they are",
            [message["content"] for message in messages],
            names(trained),
            names(served),
        )
        return True

    def _served(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int] | None:
        try:
            return self._template.ids(messages, tools=tools)
        except SettingError:
            return None
