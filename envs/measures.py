"""Measures of quality by name: what a reward may be, a measure of evaluation may be too.

Unlike a reward, a measure that fails ends the evaluation: a mean over the others would be of another question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.rewards.registry import reward_from
from rlgkd.errors import SettingError
from rlgkd.types import Item

Quality = Callable[[Sequence[Item], Sequence[str]], list[dict[str, float]]]
"""(items, completions) -> measures for evaluation, by name."""


def quality_from(given: Quality | str | Mapping[str, Any] | None) -> Quality | None:
    """Return the measures that the setting `quality` names.

    A text, or a mapping with `name`, is one measure, as rewards are named; any other mapping holds a measure under each
    of its names. A function is called with items and completions and returns a mapping for each.

    Raises: SettingError for an unknown name; DependencyError.
    """
    if given is None or (callable(given) and not isinstance(given, str | Mapping)):
        return given
    if isinstance(given, str):
        named: Mapping[str, Any] = {given.rpartition(":")[2]: given}
    elif isinstance(given, Mapping):
        named = {str(given["name"]).rpartition(":")[2]: given} if isinstance(given.get("name"), str) else given
    else:
        raise SettingError("quality", given, "give a function, a name, an import path, or a mapping of them")
    return _Measures({name: Grader(_measure(name, one), max_failed=1.0) for name, one in named.items()})


def _measure(name: str, given: Any) -> Callable[..., Any]:
    try:
        return reward_from(given)
    except SettingError as error:
        raise SettingError(f"quality.{name}", given, error.remedy) from error


class _Measures:
    """Calls each as a reward is called, with the arguments that it asks for."""

    def __init__(self, graders: Mapping[str, Grader]) -> None:
        self._graders = graders

    def __call__(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in items]
        for name, grader in self._graders.items():
            for row, score in zip(found, grader(items, completions), strict=True):
                if math.isnan(score.reward):
                    raise SettingError("quality", name, f"it failed for a text: {score.failure or 'it is no number'}")
                row[name] = score.reward
        return found
