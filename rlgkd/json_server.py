"""Posts JSON to one address, or gets it from there, with a time limit, retries and a limit on concurrent requests."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import httpx2

from rlgkd.errors import SettingError
from rlgkd.secret_masks import MASK, VARIABLE

MAX_ANSWER_BYTES = 2**24
"""Size of an answer, decompressed, beyond which it has failed."""
MIN_SECRET = 6
"""Characters of the shortest text that is hidden where an answer repeats it."""
Post = Callable[[object], Awaitable[Any]]
"""Posts a JSON body and returns the JSON answer; a body of None gets it."""


@dataclass(frozen=True, kw_only=True)
class JsonServer:
    """An address and how it is asked.

    A connection that fails, an answer of 429 or 5xx is tried again, after waits of `backoff`, twice that, and so on. A
    late answer and any other status are not.
    """

    url: str
    timeout: float
    """Seconds for a whole answer, in each try."""
    retries: int
    """Tries after the first one."""
    backoff: float
    """Seconds before the second try; doubled for each further one."""
    concurrency: int
    """Requests at once."""
    most_bytes: int | None = None
    """Size of an answer beyond which it has failed; None is `MAX_ANSWER_BYTES`."""
    may_be_empty: bool = False
    """Whether an answer without content is one, None; else it has failed."""

    def __post_init__(self) -> None:
        try:
            parsed = httpx2.URL(self.url)
            usable = parsed.scheme in ("http", "https") and bool(parsed.host) and not re.search(r"\s", self.url)
            usable &= parsed.port is None or 0 < parsed.port < 2**16
        except (httpx2.InvalidURL, TypeError):
            usable = False
        if not usable:
            raise SettingError("url", self.url, "give an address such as http://127.0.0.1:8000")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise SettingError("timeout", self.timeout, "give seconds above 0")
        if not (math.isfinite(self.backoff) and self.backoff >= 0):
            raise SettingError("backoff", self.backoff, "give seconds, 0 or more")
        if self.retries < 0:
            raise SettingError("retries", self.retries, "give 0 or more")
        if self.concurrency < 1:
            raise SettingError("concurrency", self.concurrency, "give 1 or more")

    def __str__(self) -> str:
        """The address without user, password and query, which may be secret."""
        return str(httpx2.URL(self.url).copy_with(username=None, password=None, query=None))

    @asynccontextmanager
    async def open(self, headers: dict[str, str]) -> AsyncIterator[Post]:
        """Open a connection pool, and close it when the block ends."""
        slots = asyncio.Semaphore(self.concurrency)
        limits = httpx2.Limits(max_connections=self.concurrency)
        # No timeout of the client's own: it would limit parts of a request, and asyncio's limits all of a try.
        headers = {"Accept-Encoding": "identity", **headers}
        async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, verify=_certificates()) as client:

            async def post(body: object) -> Any:
                for attempt in range(self.retries + 1):
                    if attempt:
                        await asyncio.sleep(self.backoff * 2 ** (attempt - 1))
                    try:
                        async with slots, asyncio.timeout(self.timeout):
                            answer, content = await self._answer(client, body)
                    except TimeoutError:
                        raise TimeoutError(f"{self} did not answer within {self.timeout} seconds") from None
                    except httpx2.TransportError as error:
                        failure = ConnectionError(f"{self}: {type(error).__name__}: {error}")
                        continue
                    said = content[:1000].decode(errors="replace")
                    for secret in self._secrets(headers):
                        said = said.replace(secret, MASK)
                    if answer.is_success:
                        return self._parsed(content, said)
                    failure = ConnectionError(f"{self} answered {answer.status_code}: {said[:200]!r}")
                    if answer.status_code != 429 and answer.status_code < 500:
                        break
                raise failure

            yield post

    async def _answer(self, client: httpx2.AsyncClient, body: object) -> tuple[httpx2.Response, bytes]:
        """The answer and its content, read in pieces: it may be endless, or small before it is decompressed."""
        content = bytearray()
        most = MAX_ANSWER_BYTES if self.most_bytes is None else self.most_bytes
        async with client.stream("GET" if body is None else "POST", self.url, json=body) as answer:
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > most:
                    raise ValueError(f"{self} answered with more than {most} bytes")
        return answer, bytes(content)

    def _secrets(self, headers: dict[str, str]) -> list[str]:
        """What an answer may repeat and nobody should see; the longest first."""
        url = httpx2.URL(self.url)
        found = {url.password, *(value for _, value in url.params.multi_items())}
        found |= {word for value in headers.values() for word in value.split()}
        found |= {quote(word, safe="") for word in found} | {json.dumps(word)[1:-1] for word in found}
        return sorted((word for word in found if len(word) >= MIN_SECRET), key=len, reverse=True)

    def _parsed(self, content: bytes, said: str) -> Any:
        if self.may_be_empty and not content:
            return None
        try:
            return json.loads(content, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self} answered with what is no JSON: {said[:80]!r}") from error


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, their variables put in.

    Raises: SettingError for a name or a value that no request can have, and as `with_variables` does.
    """
    sent = {name: with_variables("headers", value) for name, value in headers.items()}
    for name, value in sent.items():
        if not re.fullmatch(r"[!#$%&'*+.^`|~\w-]+", name, re.ASCII) or not re.fullmatch(r"[\t\x20-\x7e]*", value):
            raise SettingError("headers", name, "names and values of headers are ASCII, on one line")
    return sent


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # which of the two is meant?
        raise ValueError("a key stands there twice")
    return found


def with_variables(field: str, text: str, *, url: bool = False) -> str:
    """Put the values of environment variables in the place of `$NAME` and `${NAME}`; `$$` is a dollar sign.

    In an address a value is quoted, unless the address begins with it.

    Raises: SettingError for a variable that is not set, or a secret that was masked where it was written.
    """
    if MASK in text:
        raise SettingError(field, text, "a secret was masked when it was written; name an environment variable: $NAME")

    def value_of(found: re.Match[str]) -> str:
        if found[1]:
            return "$"
        name = found[2] or found[3]
        value = os.environ.get(name, "").strip()  # a key that was read from a file may end with a line break
        if not value:
            raise SettingError(field, f"${name}", "set this environment variable, or write $$ for a dollar sign")
        return quote(value, safe=":") if url and found.start() else value

    return VARIABLE.sub(value_of, text)


@cache
def _certificates() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # takes a quarter of a second
