"""A teacher on a vLLM server: log-probabilities of token ids over HTTP, asked for while the student computes.

A request that fails costs its text's divergence: it is counted, and never becomes a number. If too many fail, the run
stops with the address. Token ids are sent, never text. With each batch goes one text that is always the same, so that a
server which has come back with another model is noticed.

Not here: texts that the server generates, and teachers that read prompts in a format of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from rlgkd.background import BackgroundTask
from rlgkd.errors import ModelError, TeacherError, one_line
from rlgkd.failures import FailureCount
from rlgkd.json_server import JsonServer, Post
from rlgkd.teachers.known_text import KnownText
from rlgkd.teachers.outside import Answer
from rlgkd.teachers.vllm import known_text, request
from rlgkd.types import Episode
from rlgkd.vllm_server import headers

BYTES_OF_TOKEN = 128
"""Bytes of JSON, at most, for one token of the top k (85 are usual)."""
MOVED = 0.25
"""Mean difference, in nats a token, beyond which the fixed text was scored by another model; in 16 bits the order of
sums changes it by some 0.05."""
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ServedTeacher:
    """An `OutsideTeacher` on a server that was checked when it was opened (rlgkd.teachers.opening)."""

    name: str
    """The address, without secrets."""
    server: JsonServer
    """Its completions endpoint."""
    model: str
    """The model's name there."""
    top_k: int
    vocabulary: int
    """The student's tokens, which are the first so many of the teacher's."""
    max_failed: float
    """Share of texts that may fail, counted as `FailureCount` does."""
    fixed_text: Sequence[int] = ()
    """A text that is scored again with each batch."""
    fixed_logp_T: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Its log-probabilities, in nats, when the teacher was opened."""
    takes_any_text: bool = True
    _count: FailureCount = field(default_factory=FailureCount)
    _pending: list[_Batch] = field(default_factory=list)
    _first_failure: BaseException | None = None

    def submit(self, episodes: Sequence[Episode]) -> list[Answer]:
        """Ask for texts in the background; returns an answer for each."""
        texts = [(episode.tokens_T.tolist(), np.flatnonzero(episode.action_mask_T).tolist()) for episode in episodes]
        answers: list[Answer] = [Future() for _ in texts]
        if not texts:
            return answers
        batch = _Batch(answers=answers, fixed=Future())
        if len(self.fixed_text):
            texts.append((list(self.fixed_text), list(range(1, len(self.fixed_text)))))
        every = [*answers, batch.fixed]
        batch.task = BackgroundTask(self._ask_all(texts, every), lambda: None)
        self._pending.append(batch)
        return answers

    def resolve(self) -> None:
        """Wait for all answers and count what failed.

        Raises: TeacherError if too many texts have failed; ModelError if the server has another model than it had.
        """
        while self._pending:
            batch = self._pending.pop(0)
            batch.task.result()
            self._check_fixed_text(batch.fixed)
            failed = [error for answer in batch.answers if (error := answer.exception()) is not None]
            if failed and self._first_failure is None:
                self._first_failure = failed[0]
                reason = one_line(f"{type(failed[0]).__name__}: {failed[0]}", 300)
                _log.warning("the teacher failed for a text, whose divergence is left out: %s", reason)
            self._count.add(len(failed), len(batch.answers))
        if self._count.too_many(self.max_failed):
            raise TeacherError(
                "teacher",
                f"{self.name}: {self._count.failed} of {self._count.scored} texts failed",
                "look after the server, or raise max_failed_teacher; the first failure: "
                f"{one_line(str(self._first_failure), 300)}",
            ) from self._first_failure

    def cancel(self) -> None:
        """Abandon what is pending; its answers have failed, and are not counted."""
        pending, self._pending = self._pending, []
        for batch in pending:
            batch.task.cancel()
            self._abandon([*batch.answers, batch.fixed])  # those of a coroutine that had not begun

    def check_same(self, logp_T: Sequence[float]) -> None:
        """Raise ModelError if the fixed text had other log-probabilities when a run began; none of another length."""
        if len(logp_T) == len(self.fixed_logp_T):
            self._check_moved(self.fixed_logp_T, np.array(logp_T))

    async def _ask_all(self, texts: Sequence[tuple[list[int], list[int]]], answers: Sequence[Answer]) -> None:
        """Ask for each text, and leave what comes of it in its answer."""
        try:
            async with self.server.open(headers()) as post:
                await asyncio.gather(
                    *(self._ask(post, *text, answer) for text, answer in zip(texts, answers, strict=False))
                )
        finally:
            self._abandon(answers)

    def _abandon(self, answers: Sequence[Answer]) -> None:
        """Let answers that are not there have failed, so that nobody waits for them."""
        for answer in answers:
            with suppress(InvalidStateError):
                answer.set_exception(ConnectionError(f"{self.name}: it was not waited for"))

    async def _ask(self, post: Post, tokens: list[int], columns: list[int], answer: Answer) -> None:
        try:
            found = await post(request(self.model, tokens, self.top_k))
            known = known_text(found, tokens, columns, model=self.model, k=self.top_k, vocabulary=self.vocabulary)
        except Exception as error:
            answer.set_exception(error)
        else:
            answer.set_result(known)

    def _check_fixed_text(self, answer: Answer) -> None:
        """Raise ModelError if the fixed text was scored by another model; a request that failed says nothing."""
        if answer.exception() is None:
            self._check_moved(answer.result().token_logp_L, self.fixed_logp_T)

    def _check_moved(self, now_T: np.ndarray, before_T: np.ndarray) -> None:
        moved = float(np.abs(now_T - before_T).mean())
        if moved > MOVED:
            remedy = (
                f"it is another model than it was: the log-probabilities of a fixed text moved by {moved:.2f} nats a "
                "token; serve the one that the run began with, and --resume"
            )
            raise ModelError("teacher", self.name, remedy)


@dataclass(kw_only=True)
class _Batch:
    """Texts that were submitted together."""

    answers: list[Answer]
    fixed: Future[KnownText]
    task: BackgroundTask[None] = field(init=False)
