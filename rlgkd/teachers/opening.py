"""Opens a teacher on a vLLM server, and checks that it is a teacher for this student before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlgkd.errors import ModelError, SettingError
from rlgkd.teachers.served import BYTES_OF_TOKEN, ServedTeacher
from rlgkd.teachers.vllm import known_text, request
from rlgkd.types import Message
from rlgkd.vllm_server import VllmServer

MAX_TOP_K = 1024
"""Beyond that an answer has a hundred kilobytes for each token of a text."""
FIXED_TOKENS = 32
"""Tokens of the text that is scored at the opening and again with each batch."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation as the student reads it, for comparison with how the server's own chat template writes it."""

    messages: Sequence[Message]
    variables: Mapping[str, Any]
    """The variables of the chat template."""
    ids: Sequence[int]


def open_served(
    address: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    top_k: int,
    longest: int,
    timeout: float,
    retries: int,
    concurrency: int,
    max_failed: float,
    chat: Chat | None = None,
) -> ServedTeacher:
    """Open a teacher on a server.

    Args:
        address: Such as `http://localhost:8000`, with or without `/v1`; `#name` after it chooses one of several models.
            `$NAME` in it is an environment variable.
        tokenizer: The student's.
        top_k: Tokens to ask for at each position.
        longest: The most tokens that a text has, prompt included.
        timeout: Seconds for an answer, in each try.
        retries: Further tries, after 1 s, 2 s, 4 s, and so on.
        concurrency: Requests at once.
        max_failed: Share of texts that may fail.
        chat: A short conversation, if the student reads some; the teacher reads it in the student's format, and a
            warning says if its own is another one.

    Raises: ModelError if there is no such server, or its model's context is too short or its vocabulary another one;
        SettingError for an address that cannot be one, or a `top_k` above what is reasonable.
    """
    if top_k > MAX_TOP_K:
        raise SettingError("teacher_top_k", top_k, f"a served teacher gives at most {MAX_TOP_K}: 64 are usual")
    server = VllmServer(
        setting="teacher",
        address=address,
        timeout=timeout,
        retries=retries,
        concurrency=concurrency,
        most_bytes=longest * (top_k + 1) * BYTES_OF_TOKEN + 2**20,
    )
    server.choose_model(longest + 1)  # and the one token that is asked for after a text
    server.check_vocabulary(tokenizer)
    if chat is not None:
        _compare_format(server, chat, tokenizer)
    teacher = ServedTeacher(
        name=server.name,
        server=server.endpoint("/v1/completions"),
        model=server.model,
        top_k=top_k,
        vocabulary=len(tokenizer),
        max_failed=max_failed,
    )
    fixed = np.linspace(0, len(tokenizer) - 1, min(FIXED_TOKENS, longest), dtype=np.int64).tolist()
    teacher.fixed_text, teacher.fixed_logp_T = fixed, _log_probabilities(server, fixed, top_k, len(tokenizer))
    return teacher


def _compare_format(server: VllmServer, chat: Chat, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn if the server's chat template writes a conversation otherwise than the student's, or there is none."""
    body = {
        "model": server.model,
        "messages": list(chat.messages),
        "add_generation_prompt": True,
        "chat_template_kwargs": dict(chat.variables),
    }
    try:
        answer = server.ask("/tokenize", body)
        theirs = list(map(int, answer["tokens"]))
    except (ModelError, KeyError, TypeError, ValueError):
        _log.warning("the teacher has no chat template: it reads chats as the student does")
        return
    if theirs != list(chat.ids):
        _log.warning(
            "the teacher's chat template is another one: it writes %r where the student reads %r, and as a served "
            "teacher it reads the latter; give it as a model to let it read its own format",
            tokenizer.decode(theirs),
            tokenizer.decode(list(chat.ids)),
        )


def _log_probabilities(server: VllmServer, tokens: Sequence[int], top_k: int, vocabulary: int) -> np.ndarray:
    """[T - 1], those of a text's tokens after the first, in nats."""

    def hint(message: str) -> str:
        too_many = "max allowed" in message
        return f"start it with --max-logprobs {top_k}, or lower teacher_top_k: " if too_many else ""

    answer = server.ask("/v1/completions", request(server.model, tokens, top_k), hint=hint)
    columns = list(range(1, len(tokens)))
    try:
        text = known_text(answer, tokens, columns, model=server.model, k=top_k, vocabulary=vocabulary)
    except ValueError as error:
        raise server.error(f"{error}; give a vLLM server") from error
    return text.token_logp_L
