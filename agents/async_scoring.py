"""A reward that waits (an async one: served, a judge) is asked for aside, while there is something else to compute.

It is asked for as soon as a batch is written. Meanwhile the next texts of the update are written and the teacher reads;
the scores are put in their places before anyone sees the rollout. Batches are asked for one by one, in their order, so
nothing changes but the time. Any other reward is called at once, where it always was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rlgkd.types import AsyncTask, Item, PendingScores, Score, Task, Trajectory


class Later:
    """The task, for rollouts whose scores may come later; a block that is left by an error calls the reward off."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._asked: PendingScores | None = None
        self._marks: list[Score] = []
        """What stands in the trajectories for the scores that are asked for: each is an object of its own."""
        self._known: dict[int, tuple[Score, Score]] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "_task":  # of a copy in the making
            raise AttributeError(name)
        return getattr(self._task, name)

    def __enter__(self) -> Later:
        return self

    def __exit__(self, *error: object) -> None:
        if self._asked is not None:
            self._asked.cancel()
        self._asked, self._known = None, {}

    @property
    def waiting(self) -> bool:
        """Whether there are scores still to come."""
        return self._asked is not None and not self._asked.done()

    def score(self, items: Sequence[Item], completions: Sequence[str], **more: Any) -> list[Score]:
        """As the task's, or what stands for it until `settled`."""
        if not (isinstance(self._task, AsyncTask) and self._task.is_async):
            return self._task.score(items, completions, **more)
        self._take()
        self._marks = [Score(reward=math.nan) for _ in completions]
        self._asked = self._task.submit(items, completions, **more)
        return self._marks

    def settled(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """The trajectories with their scores, waited for.

        Raises: what the reward raises.
        """
        self._take()
        return [
            dataclasses.replace(t, score=self._known[id(t.score)][1]) if id(t.score) in self._known else t
            for t in trajectories
        ]

    def _take(self) -> None:
        if self._asked is None:
            return
        asked, self._asked = self._asked, None
        scores = asked.result()
        self._known |= {id(mark): (mark, score) for mark, score in zip(self._marks, scores, strict=True)}
