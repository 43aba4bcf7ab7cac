"""A sampler on vLLM servers: completions of token ids over HTTP, asked for in the background.

The requests of a batch go to the servers in turn. One that fails costs its prompt's texts: they are counted, and never
become anything else. If too many fail the run stops with the address.

Not here: how the servers get the student's weights (rlgkd.samplers.weights).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from rlgkd.background import BackgroundTask
from rlgkd.errors import SamplerError, one_line
from rlgkd.failures import FailureCount
from rlgkd.json_server import Post
from rlgkd.lm.generate import Completion
from rlgkd.samplers.vllm import Ends, Wanted, completions, request
from rlgkd.vllm_server import VllmServer, headers

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ServedSampler:
    """Servers that sample for one student; see rlgkd.samplers.opening."""

    servers: Sequence[VllmServer]
    temperature: float
    vocabulary: int
    """The student's tokens, which are the first so many of the servers'."""
    max_failed: float
    """Share of texts that may fail, counted as `FailureCount` does."""
    _count: FailureCount = field(default_factory=FailureCount)
    _first_failure: BaseException | None = None

    @property
    def name(self) -> str:
        """The addresses, without secrets."""
        return ", ".join(server.name for server in self.servers)

    def submit(self, wanted: Sequence[Wanted], ends: Ends) -> Submission:
        """Ask for completions, without waiting."""
        return Submission(self, wanted, ends)

    def count(self, failures: Sequence[BaseException], failed: int, asked: int) -> None:
        """Count the texts of a batch, of which some have failed, with the reasons.

        Raises: SamplerError if too many have so far.
        """
        if failures and self._first_failure is None:
            self._first_failure = failures[0]
            reason = one_line(f"{type(failures[0]).__name__}: {failures[0]}", 300)
            _log.warning("the sampler failed for a prompt, whose texts are left out: %s", reason)
        self._count.add(failed, asked)
        if self._count.too_many(self.max_failed):
            remedy = "look after the server and --resume, or raise max_failed_sampler"
            raise self.error(f"{self._count.failed} of {self._count.scored} texts failed", remedy)

    def error(self, what: str, remedy: str) -> SamplerError:
        """An error with the addresses, and the first failure if this process has seen it."""
        failure = self._first_failure
        if failure is not None:
            remedy += f"; the first failure: {one_line(str(failure), 300)}"
        error = SamplerError("sampler", f"{self.name}: {what}", remedy)
        error.__cause__ = failure
        return error


class Submission:
    """Completions that were asked for, and are waited for by `result`."""

    def __init__(self, sampler: ServedSampler, wanted: Sequence[Wanted], ends: Ends) -> None:
        self._sampler, self._wanted, self._ends = sampler, wanted, ends
        self._found: list[list[Completion] | Exception] = [ConnectionError("it was not waited for") for _ in wanted]
        self._task = BackgroundTask(self._ask_all(), lambda: self._found)

    def result(self) -> list[list[Completion] | Exception]:
        """The completions of each prompt, or why there are none."""
        return self._task.result()

    def cancel(self) -> None:
        """Abandon what is pending."""
        self._task.cancel()

    async def _ask_all(self) -> None:
        async with AsyncExitStack() as stack:
            servers = self._sampler.servers
            posts = [await stack.enter_async_context(s.endpoint("/v1/completions").open(headers())) for s in servers]
            await asyncio.gather(
                *(self._ask(n, servers[n % len(servers)], posts[n % len(servers)]) for n in range(len(self._wanted)))
            )

    async def _ask(self, number: int, server: VllmServer, post: Post) -> None:
        wanted, sampler = self._wanted[number], self._sampler
        try:
            answer = await post(request(server.model, wanted, self._ends, temperature=sampler.temperature))
            found = completions(answer, wanted, self._ends, model=server.model, vocabulary=sampler.vocabulary)
        except ValueError as error:
            self._found[number] = ValueError(f"{server.name}: {error}")
        except Exception as error:
            self._found[number] = error
        else:
            self._found[number] = found
