"""A vLLM server by its address: which model it has, whether its tokens are the student's, and questions to it.

What asks it for log-probabilities is in rlgkd.teachers, what asks it for texts in rlgkd.samplers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
from transformers import PreTrainedTokenizerBase

from rlgkd.background import BackgroundTask
from rlgkd.errors import ModelError, RlgkdError, SettingError, one_line
from rlgkd.json_server import JsonServer, with_variables

KEY = "VLLM_API_KEY"
"""Environment variable of the server's key, which vLLM itself reads; sent as a bearer token if it is set."""
IDS_AT_ONCE = 4096
"""Token ids that are turned into text in one request."""


def headers() -> dict[str, str]:
    """What is sent with each request."""
    key = os.environ.get(KEY, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(kw_only=True)
class VllmServer:
    """An address and how it is asked; what goes wrong with `ask` is an error of the setting that holds the address."""

    setting: str
    """The setting, `teacher` or `sampler`."""
    address: str
    """Such as `http://localhost:8000`, with or without `/v1`; `#name` after it chooses one of several models.

    `$NAME` in it is an environment variable."""
    timeout: float
    """Seconds for an answer, in each try."""
    retries: int
    """Further tries, after 1 s, 2 s, 4 s, and so on."""
    concurrency: int
    """Requests at once."""
    most_bytes: int | None = None
    """Size of an answer beyond which it has failed; None is the default of `JsonServer`."""
    model: str = ""
    """The model's name there, once `choose_model` has found it."""
    _base: str = field(init=False)
    _wanted: str = field(init=False)

    def __post_init__(self) -> None:
        self._base, _, self._wanted = with_variables(self.setting, self.address, url=True).partition("#")
        self.endpoint("")

    @property
    def name(self) -> str:
        """The address without secrets."""
        return str(self.endpoint(""))

    def endpoint(self, path: str, *, retries: int | None = None, may_be_empty: bool = False) -> JsonServer:
        """A path of the server, such as `/v1/completions`.

        Raises: SettingError for an address that cannot be one.
        """
        path, _, query = path.partition("?")
        try:
            url = httpx2.URL(self._base)
            url = url.copy_with(path=url.path.rstrip("/").removesuffix("/v1") + path)
            if query:
                url = url.copy_merge_params(dict(pair.split("=") for pair in query.split("&")))
            return JsonServer(
                url=str(url),
                timeout=self.timeout,
                retries=self.retries if retries is None else retries,
                backoff=1.0,
                concurrency=self.concurrency,
                most_bytes=self.most_bytes,
                may_be_empty=may_be_empty,
            )
        except httpx2.InvalidURL as error:
            remedy = f"give an address such as http://localhost:8000: {error}"
            raise SettingError(self.setting, self.address, remedy) from error
        except SettingError as error:
            raise SettingError(self.setting, self.address, error.remedy) from error

    def choose_model(self, needed: int) -> None:
        """Find the model that the server has, in whose context so many tokens must fit.

        Raises: ModelError.
        """
        answer = self.ask("/v1/models", None)
        try:
            models = {str(model["id"]): model.get("max_model_len") for model in answer["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            remedy = f"it answered with no list of models ({one_line(answer, 80)!r}); give a vLLM server"
            raise self.error(remedy) from error
        if self._wanted and self._wanted not in models:
            raise self.error(f"it has no model {self._wanted!r}; choose one of {', '.join(models)}")
        if not models:
            raise self.error("it has no model; start it with one")
        self.model = self._wanted or next(iter(models))
        context = models[self.model]
        if isinstance(context, int) and context < needed:
            remedy = f"its context of {context} tokens is shorter than the {needed} that are needed"
            raise self.error(f"{remedy}; start it with --max-model-len {needed}, or lower max_new_tokens")

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compare the text of every token with the student's; the server's model may have more tokens after them.

        Raises: ModelError.
        """
        for start in range(0, len(tokenizer), IDS_AT_ONCE):
            ids = list(range(start, min(start + IDS_AT_ONCE, len(tokenizer))))
            if self._text(ids) == tokenizer.decode(ids):
                continue
            while len(ids) > 1:  # the first token that differs
                half = ids[: len(ids) // 2]
                ids = half if self._text(half) != tokenizer.decode(half) else ids[len(half) :]
            ours, theirs = tokenizer.decode(ids), self._text(ids)
            remedy = f"its vocabulary differs from the student's: token {ids[0]} is {theirs!r} there and {ours!r} here"
            raise self.error(f"{remedy}; serve a {self.setting} with the student's tokenizer")

    def ask(
        self,
        path: str,
        body: object,
        *,
        retries: int | None = None,
        may_be_empty: bool = False,
        hint: Callable[[str], str] = lambda message: "",
    ) -> Any:
        """Post a body and wait for the answer; a body of None gets it.

        Args:
            path: See `endpoint`.
            body: JSON.
            retries: See `endpoint`.
            may_be_empty: Whether an answer without content is one, None.
            hint: What to do about a failure, by its message; empty where there is nothing to say.

        Raises: ModelError.
        """
        found: list[Any] = []

        async def run() -> None:
            async with self.endpoint(path, retries=retries, may_be_empty=may_be_empty).open(headers()) as post:
                found.append(await post(body))

        try:
            BackgroundTask(run(), lambda: None).result()
        except RlgkdError:
            raise
        except Exception as error:
            more = hint(str(error)) or ("is it running there? " if isinstance(error, OSError) else "")
            raise self.error(f"{more}{one_line(error, 300)}") from error
        return found[0]

    def error(self, remedy: str) -> ModelError:
        """What is wrong with it."""
        return ModelError(self.setting, self.name, remedy)

    def _text(self, ids: Sequence[int]) -> str:
        answer = self.ask("/detokenize", {"model": self.model, "tokens": list(ids)})
        if not isinstance(answer, dict) or not isinstance(answer.get("prompt"), str):
            raise self.error(f"it turned no token ids into text ({one_line(answer, 80)!r}); give a vLLM server")
        return str(answer["prompt"])
