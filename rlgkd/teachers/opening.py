"""Opens a teacher on a vLLM server, and checks that it is a teacher for this student before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from transformers import PreTrainedTokenizerBase

from rlgkd.background import BackgroundTask
from rlgkd.errors import ModelError, RlgkdError, SettingError, one_line
from rlgkd.json_server import JsonServer, Post, with_variables
from rlgkd.teachers.served import BYTES_OF_TOKEN, ServedTeacher
from rlgkd.teachers.vllm import known_text, request
from rlgkd.types import Message

MAX_TOP_K = 1024
"""Beyond that an answer has a hundred kilobytes for each token of a text."""
IDS_AT_ONCE = 4096
"""Token ids that are turned into text in one request."""
FIXED_TOKENS = 32
"""Tokens of the text that is scored at the opening and again with each batch."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation as the student reads it, for comparison with how the server's own chat template writes it."""

    messages: Sequence[Message]
    variables: Mapping[str, Any]
    """Of the chat template."""
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
    base, _, wanted = with_variables("teacher", address, url=True).partition("#")

    def endpoint(path: str) -> JsonServer:
        most = longest * (top_k + 1) * BYTES_OF_TOKEN + 2**20
        try:
            url = httpx2.URL(base)
            url = url.copy_with(path=url.path.rstrip("/").removesuffix("/v1") + path)
            return JsonServer(
                url=str(url), timeout=timeout, retries=retries, backoff=1.0, concurrency=concurrency, most_bytes=most
            )
        except httpx2.InvalidURL as error:
            raise SettingError("teacher", address, f"give an address such as http://localhost:8000: {error}") from error
        except SettingError as error:
            raise SettingError("teacher", address, error.remedy) from error

    teacher = ServedTeacher(
        name=str(endpoint("")),
        server=endpoint("/v1/completions"),
        model="",
        top_k=top_k,
        vocabulary=len(tokenizer),
        max_failed=max_failed,
    )
    asker = _Asker(teacher, endpoint)
    teacher.model = asker.model_name(wanted, longest)
    asker.check_vocabulary(tokenizer)
    if chat is not None:
        asker.compare_format(chat, tokenizer)
    fixed = np.linspace(0, len(tokenizer) - 1, min(FIXED_TOKENS, longest), dtype=np.int64).tolist()
    teacher.fixed_text, teacher.fixed_logp_T = fixed, asker.log_probabilities(fixed)
    return teacher


class _Asker:
    """Questions to a server that is being opened; what goes wrong is a ModelError."""

    def __init__(self, teacher: ServedTeacher, endpoint: Callable[[str], JsonServer]) -> None:
        self.teacher, self.endpoint = teacher, endpoint

    def model_name(self, wanted: str, longest: int) -> str:
        """The model that the server has; texts of `longest` tokens fit its context, and the one token after them."""
        answer = self._ask("/v1/models", lambda post: post(None))
        try:
            models = {str(model["id"]): model.get("max_model_len") for model in answer["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            remedy = f"it answered with no list of models ({one_line(answer, 80)!r}); give a vLLM server"
            raise self._error(remedy) from error
        if wanted and wanted not in models:
            raise self._error(f"it has no model {wanted!r}; choose one of {', '.join(models)}")
        if not models:
            raise self._error("it has no model; start it with one")
        name = wanted or next(iter(models))
        context = models[name]
        if isinstance(context, int) and context < longest + 1:
            remedy = f"its context of {context} tokens is shorter than the environment's {longest} and one more"
            raise self._error(f"{remedy}; start it with --max-model-len {longest + 1}, or lower max_new_tokens")
        return name

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compare the text of every token with the student's; the teacher may have more tokens after them."""
        for start in range(0, len(tokenizer), IDS_AT_ONCE):
            ids = list(range(start, min(start + IDS_AT_ONCE, len(tokenizer))))
            if self._text(ids) == tokenizer.decode(ids):
                continue
            while len(ids) > 1:  # the first token that differs
                half = ids[: len(ids) // 2]
                ids = half if self._text(half) != tokenizer.decode(half) else ids[len(half) :]
            ours, theirs = tokenizer.decode(ids), self._text(ids)
            remedy = f"its vocabulary differs from the student's: token {ids[0]} is {theirs!r} there and {ours!r} here"
            raise self._error(f"{remedy}; serve a teacher with the student's tokenizer")

    def compare_format(self, chat: Chat, tokenizer: PreTrainedTokenizerBase) -> None:
        """Warn if the server's chat template writes a conversation otherwise than the student's, or there is none."""
        body = {
            "model": self.teacher.model,
            "messages": list(chat.messages),
            "add_generation_prompt": True,
            "chat_template_kwargs": dict(chat.variables),
        }
        try:
            answer = self._ask("/tokenize", lambda post: post(body))
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

    def log_probabilities(self, tokens: Sequence[int]) -> np.ndarray:
        """[T - 1], those of a text's tokens after the first, in nats."""
        teacher, columns = self.teacher, list(range(1, len(tokens)))
        body = request(teacher.model, tokens, teacher.top_k)
        answer = self._ask("/v1/completions", lambda post: post(body))
        try:
            text = known_text(
                answer, tokens, columns, model=teacher.model, k=teacher.top_k, vocabulary=teacher.vocabulary
            )
        except ValueError as error:
            raise self._error(f"{error}; give a vLLM server") from error
        return text.token_logp_L

    def _text(self, ids: Sequence[int]) -> str:
        answer = self._ask("/detokenize", lambda post: post({"model": self.teacher.model, "tokens": list(ids)}))
        if not isinstance(answer, dict) or not isinstance(answer.get("prompt"), str):
            raise self._error(f"it turned no token ids into text ({one_line(answer, 80)!r}); give a vLLM server")
        return str(answer["prompt"])

    def _ask(self, path: str, question: Callable[[Post], Awaitable[Any]]) -> Any:
        found: list[Any] = []

        async def run() -> None:
            async with self.endpoint(path).open(self.teacher.headers()) as post:
                found.append(await question(post))

        try:
            BackgroundTask(run(), lambda: None).result()
        except RlgkdError:
            raise
        except Exception as error:
            more = ""
            if "max allowed" in str(error):
                more = f"start it with --max-logprobs {self.teacher.top_k}, or lower teacher_top_k: "
            elif isinstance(error, OSError):
                more = "is it running there? "
            raise self._error(f"{more}{one_line(error, 300)}") from error
        return found[0]

    def _error(self, remedy: str) -> ModelError:
        return ModelError("teacher", self.teacher.name, remedy)
