"""The reward of tasks that are not scored."""

from __future__ import annotations

from collections.abc import Sequence


def no_reward(completions: Sequence[str]) -> list[float]:
    """Score every completion 0: for a task that only generates, or whose steps are timed."""
    return [0.0] * len(completions)
