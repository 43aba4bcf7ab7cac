"""Rewards made of other rewards: weighted sums, and hints on the way that move no optimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from rlgkd.envs.rewards.grader import Grader, Reward
from rlgkd.errors import SettingError
from rlgkd.types import Item, Score


class Weighted:
    """A sum of rewards, each logged under its name; where one of them fails, so does the sum."""

    def __init__(self, parts: Mapping[str, tuple[float, Reward]]) -> None:
        """Take {name: (weight, reward)}.

        Raises: SettingError where there are none.

        Example:
            >>> from rlgkd.envs.rewards import length, pattern
            >>> both = Weighted({"form": (0.5, pattern(r"[A-Z].*")), "brief": (0.5, length(3))})
            >>> item = Item(key="0", prompt="")
            >>> both([item, item], ["A dog.", "a cat that sat on a mat"])
            [Score(reward=1.0, parts={'form': 1.0, 'brief': 1.0}), Score(reward=0.0, parts={'form': 0.0, 'brief': 0.0})]
        """
        if not parts:
            raise SettingError("parts", parts, "give {name: (weight, reward)}")
        self._parts = {
            name: (float(weight), Grader(reward, max_failed=1.0)) for name, (weight, reward) in parts.items()
        }

    def asks_for(self, name: str) -> bool:
        """Whether one of the parts has an argument of that name."""
        return any(grader.asks_for(name) for _, grader in self._parts.values())

    def __call__(self, items: Sequence[Item], completions: Sequence[str], **more: Any) -> list[Score]:
        """One Score for each completion, its parts those of this sum."""
        columns = {name: grader(items, completions, **more) for name, (_, grader) in self._parts.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return [self._sum(row) for row in rows]

    def _sum(self, row: Mapping[str, Score]) -> Score:
        weighed = [(self._parts[name][0], score) for name, score in row.items()]
        reward = sum(weight * score.reward for weight, score in weighed)
        steps = None
        if (told := next((s.steps for s in row.values() if s.steps is not None), None)) and math.isfinite(reward):
            each = [weight * np.array(s.steps or (*[0.0] * (len(told) - 1), s.reward)) for weight, s in weighed]
            steps = tuple(np.sum(each, axis=0).tolist())
        parts = {name: score.reward for name, score in row.items()}
        failure = next((f"{name}: {score.failure}" for name, score in row.items() if score.failure), "")
        return Score(reward=reward, parts=parts, steps=steps, failure=failure)


class Shaped:
    """A reward with hints on the way: each action earns what it adds to a potential, which a finished text gives back.

    The sum of the hints is the same for all texts of a prompt, so no optimum moves; an action's own hint reaches it
    without waiting for the end. Source: Ng, Harada and Russell 1999, "Policy invariance under reward transformations".
    """

    def __init__(self, reward: Reward, potential: Callable[[Sequence[str]], Sequence[float]]) -> None:
        """Take the reward, and the potential of texts so far (begun ones; the empty one among them)."""
        self._grader, self._potential = Grader(reward, max_failed=1.0), potential

    def __call__(
        self, items: Sequence[Item], completions: Sequence[str], tokens: Sequence[Sequence[str]], **more: Any
    ) -> list[Score]:
        """One Score for each completion: the reward less the empty text's potential, with its steps."""
        scores = []
        for score, row in zip(self._grader(items, completions, tokens=tokens, **more), tokens, strict=True):
            of_each = np.array([*self._potential([*accumulate(("", *row))]), 0.0])
            steps = np.diff(np.delete(of_each, -2))
            steps[-1] += score.reward
            told = tuple(steps.tolist())
            scores.append(Score(reward=float(steps.sum()), parts=score.parts, steps=told, failure=score.failure))
        return scores
