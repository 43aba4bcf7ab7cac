"""Posts JSON to one address, with a time limit, retries and a limit on concurrent requests."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2

from rlgkd.errors import SettingError

Post = Callable[[object], Awaitable[Any]]
"""Posts a JSON body and returns the JSON answer."""


@dataclass(frozen=True, kw_only=True)
class JsonServer:
    """An address and how it is asked.

    A connection that fails, an answer of 429 or 5xx is tried again, after waits of `backoff`, twice that, and so on. A
    late answer and any other status are not.
    """

    url: str
    timeout: float
    """Seconds for an answer, in each try."""
    retries: int
    """Tries after the first one."""
    backoff: float
    """Seconds before the second try; doubled for each further one."""
    concurrency: int
    """Requests at once."""

    def __post_init__(self) -> None:
        try:
            parsed = httpx2.URL(self.url)
            usable = parsed.scheme in ("http", "https") and bool(parsed.host)
        except (httpx2.InvalidURL, TypeError):
            usable = False
        if not usable:
            raise SettingError("url", self.url, "give an address such as http://127.0.0.1:8000/reward")
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
        async with httpx2.AsyncClient(headers=headers, timeout=None, limits=limits, verify=_certificates()) as client:

            async def post(body: object) -> Any:
                for attempt in range(self.retries + 1):
                    if attempt:
                        await asyncio.sleep(self.backoff * 2 ** (attempt - 1))
                    try:
                        async with slots, asyncio.timeout(self.timeout):
                            answer = await client.post(self.url, json=body)
                    except TimeoutError:
                        raise TimeoutError(f"{self} did not answer within {self.timeout} seconds") from None
                    except httpx2.TransportError as error:
                        failure = ConnectionError(f"{self}: {type(error).__name__}: {error}")
                        continue
                    if answer.is_success:
                        return self._parsed(answer)
                    failure = ConnectionError(f"{self} answered {answer.status_code}: {answer.text[:200]!r}")
                    if answer.status_code != 429 and answer.status_code < 500:
                        break
                raise failure

            yield post

    def _parsed(self, answer: httpx2.Response) -> Any:
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self} answered with what is no JSON: {answer.text[:80]!r}") from error


@cache
def _certificates() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # takes a quarter of a second
