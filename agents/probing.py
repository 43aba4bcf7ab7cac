"""How good the teacher's own answers to prompts are, for a gate that asks for it (TGOPD)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlgkd.lm.model import LanguageModel
from rlgkd.ranks import ALONE, Ranks
from rlgkd.rollout import rollout
from rlgkd.sharding import whole
from rlgkd.teachers import ModelTeacher, RoutedTeachers
from rlgkd.types import Item, Task


class TeacherAnswers:
    """The mean rewards of the teacher's answers, each prompt of which is answered once, when it first comes.

    They are sampled from the streams of `seed`, so that a run that is resumed has the same ones again.
    """

    def __init__(self, teacher: ModelTeacher, task: Task, *, number: int, seed: int, ranks: Ranks = ALONE) -> None:
        self.teacher, self.task, self.number, self.seed, self.ranks = teacher, task, number, seed, ranks
        self._rewards: dict[str, float] = {}

    def rewards(self, items: Sequence[Item]) -> list[float]:
        """The mean reward of `number` answers to each item's prompt; NaN where the reward failed for all of them.

        All processes of a job have to call this with the same items; each has its share answered.
        """
        new = list({item.key: item for item in items if item.key not in self._rewards}.values())
        own = [new[row] for row in self.ranks.share(len(new))]
        if new:
            with whole(self.teacher):
                for found in self.ranks.gather(lambda: self._answered(own)):
                    self._rewards |= found
        return [self._rewards[item.key] for item in items]

    def _answered(self, items: Sequence[Item]) -> dict[str, float]:
        if not items:
            return {}
        if not isinstance(self.teacher, RoutedTeachers):
            return self._answered_by(self.teacher, items)
        found: dict[str, float] = {}
        for lm, rows in self.teacher.parts(items):
            found |= self._answered_by(lm, [items[row] for row in rows])
        return found

    def _answered_by(self, lm: ModelTeacher, items: Sequence[Item]) -> dict[str, float]:
        assert isinstance(lm, LanguageModel), "a mixture, which writes no texts, has been refused"
        answers = rollout(lm, self.task, items, group=self.number, seed=self.seed)
        rewards_PG = np.array([t.score.reward for t in answers]).reshape(len(items), self.number)
        valid_PG = np.isfinite(rewards_PG)
        sums_P = np.where(valid_PG, rewards_PG, 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            means_P = sums_P / valid_PG.sum(axis=1)
        return {item.key: float(mean) for item, mean in zip(items, means_P, strict=True)}
