"""Rewards made of other rewards: weighted sums, and potential-based hints along the way."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from rlgkd.envs.rewards.arguments import Reward
from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.rewards.returned import ABSTAINED
from rlgkd.errors import SettingError
from rlgkd.failures import MIN_SAMPLES_ALL_FAILED
from rlgkd.types import Item, Score

_log = logging.getLogger(__name__)


class Weighted:
    """A sum of rewards, each logged under its name; a sample for which one of them fails has failed.

    A part that gives None for a sample abstains: it is left out of that sample's sum and parts. A sample for which all
    parts abstain has failed.
    """

    def __init__(self, parts: Mapping[str, tuple[float, Reward]]) -> None:
        """Take {name: (weight, reward)}.

        Raises: SettingError if there are none.

        Examples:
            >>> from rlgkd.envs.rewards import length, pattern
            >>> both = Weighted({"form": (0.5, pattern(r"[A-Z].*")), "brief": (0.5, length(3))})
            >>> item = Item(key="0", prompt="")
            >>> both([item, item], ["A dog.", "a cat that sat on a mat"])
            [Score(reward=1.0, parts={'form': 1.0, 'brief': 1.0}), Score(reward=0.0, parts={'form': 0.0, 'brief': 0.0})]
        """
        if not parts:
            raise SettingError("parts", parts, "give {name: (weight, reward)}")
        self._silent: set[str] = set()
        """Parts that have always abstained, which was said."""
        self._parts = {
            name: (float(weight), Grader(reward, max_failed=1.0, may_abstain=True))
            for name, (weight, reward) in parts.items()
        }

    @property
    def needs_references(self) -> bool:
        """Whether one of the parts compares with references."""
        return any(getattr(grader.reward, "needs_references", False) for _, grader in self._parts.values())

    def asks_for(self, name: str) -> bool:
        """Whether one of the parts has an argument of that name."""
        return any(grader.asks_for(name) for _, grader in self._parts.values())

    def __call__(self, items: Sequence[Item], completions: Sequence[str], **extra: Any) -> list[Score]:
        """Return one Score for each completion, its parts those of this sum."""
        columns = [grader(items, completions, **extra) for _, grader in self._parts.values()]
        for name, (_, grader) in self._parts.items():
            if grader.scored == grader.abstained >= MIN_SAMPLES_ALL_FAILED and name not in self._silent:
                self._silent.add(name)
                _log.warning(
                    "the reward %s has returned None for all of %d samples: it has no part in the sum",
                    name,
                    grader.scored,
                )
        return [self._sum(row) for row in zip(*columns, strict=True)]

    def _sum(self, scores: Sequence[Score]) -> Score:
        """The Score of one sample, of the Scores of its parts."""
        given = [(name, weight, score) for (name, (weight, _)), score in zip(self._parts.items(), scores, strict=True)]
        given = [part for part in given if part[2].failure != ABSTAINED]
        if not given:
            return Score(reward=math.nan, failure=ABSTAINED)
        names, weights, scores = zip(*given, strict=True)
        reward = sum(weight * score.reward for weight, score in zip(weights, scores, strict=True))
        failures = [f"{name}: {score.failure}" for name, score in zip(names, scores, strict=True) if score.failure]
        return Score(
            reward=reward,
            parts={name: score.reward for name, score in zip(names, scores, strict=True)},
            steps=_weighted_steps(weights, scores) if math.isfinite(reward) else None,
            failure=failures[0] if failures else "",
        )


class Shaped:
    """A reward with hints: each action earns what it adds to a potential, and the last one gives the potential back.

    The sum of the hints is the same for all texts of a prompt, so no optimum moves; an action's own hint reaches it
    without waiting for the end. Source: Ng, Harada and Russell 1999, "Policy invariance under reward transformations".
    """

    def __init__(self, reward: Reward, potential: Callable[[Sequence[str]], Sequence[float]]) -> None:
        """Take the reward, and the potential of unfinished texts (the empty one among them)."""
        self._grader = Grader(reward, max_failed=1.0)
        self._potential = potential

    @property
    def needs_references(self) -> bool:
        """Whether the reward compares with references."""
        return bool(getattr(self._grader.reward, "needs_references", False))

    def __call__(
        self, items: Sequence[Item], completions: Sequence[str], tokens: Sequence[Sequence[str]], **extra: Any
    ) -> list[Score]:
        """Return one Score for each completion: the reward less the empty text's potential, with its steps."""
        shaped = []
        for score, row in zip(self._grader(items, completions, tokens=tokens, **extra), tokens, strict=True):
            prefixes = [*accumulate(("", *row))]
            potentials = np.array([*self._potential(prefixes), 0.0])
            # The finished text has no potential: the difference at the last action goes to 0 at once.
            steps = np.diff(np.delete(potentials, -2))
            steps[-1] += score.reward
            shaped.append(
                Score(reward=float(steps.sum()), parts=score.parts, steps=tuple(steps.tolist()), failure=score.failure)
            )
        return shaped


def _weighted_steps(weights: Sequence[float], scores: Sequence[Score]) -> tuple[float, ...] | None:
    """The steps of a weighted sum, None if no part has any; a part without steps is earned by the last action."""
    lengths = [len(score.steps) for score in scores if score.steps is not None]
    if not lengths:
        return None
    total = []
    for weight, score in zip(weights, scores, strict=True):
        steps = score.steps or (*[0.0] * (lengths[0] - 1), score.reward)
        total.append(weight * np.array(steps))
    return tuple(np.sum(total, axis=0).tolist())
