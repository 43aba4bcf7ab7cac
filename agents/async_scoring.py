"""Scores the batches of a rollout; those of an asynchronous reward in the background.

An asynchronous reward (served, a judge) is submitted as soon as a batch is sampled. Meanwhile the next batch is sampled
and the teacher runs; the scores are joined by index before anyone sees the rollout. Batches are submitted one at a
time, in their order, so only the time changes. Any other reward is called at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

from rlgkd import scoring
from rlgkd.rollout import ended
from rlgkd.types import AsyncTask, Episode, Score, Task, Trajectory


class Scoring:
    """The scores of one rollout; leaving the block by an error cancels what is pending."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._episodes: list[Episode] = []
        self._scores: list[Score] = []
        self._submission: scoring.Submission | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._submission is not None:
            self._submission.cancel()

    @property
    def pending(self) -> bool:
        """Whether scores are still to come."""
        return self._submission is not None and not self._submission.done()

    def submit(self, episodes: Sequence[Episode]) -> None:
        """Score a batch, or begin to; waits for the batch before it.

        Raises: what the reward raises.
        """
        self._resolve()
        batch = [ended(episode) for episode in episodes]
        self._episodes += episodes
        if scoring.is_async(self._task):
            self._submission = scoring.Submission(cast(AsyncTask, self._task), batch)
        else:
            self._scores += scoring.score(self._task, batch)

    def trajectories(self) -> list[Trajectory]:
        """All submitted episodes with their scores, which are waited for.

        Raises: what the reward raises.
        """
        self._resolve()
        return [episode.scored(score) for episode, score in zip(self._episodes, self._scores, strict=True)]

    def _resolve(self) -> None:
        if self._submission is not None:
            submission, self._submission = self._submission, None
            self._scores += submission.result()
