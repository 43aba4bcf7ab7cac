"""Rewards: any function whose arguments are taken by name, called once for a batch of finished texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from rlgkd.errors import DependencyError, SettingError
from rlgkd.types import Item, Score

Reward = Callable[..., Sequence[float | Score]]


def call_reward(reward: Reward, items: Sequence[Item], completions: Sequence[str]) -> list[Score]:
    """Call `reward` with the arguments it names, each a list over the batch, and make Scores of what it returns.

    The names it may use: `prompts`, `completions`, `references`, `items`, and every column that all items have.

    Raises: SettingError for a name that there is not, or if it does not return one number for each completion.
    """
    if not completions:
        return []
    columns: dict[str, list[Any]] = {
        name: [item.columns[name] for item in items]
        for name in items[0].columns
        if all(name in item.columns for item in items)
    }
    available: dict[str, Any] = {
        **columns,
        "prompts": [item.prompt for item in items],
        "completions": list(completions),
        "references": [item.reference for item in items],
        "items": list(items),
    }
    returned = reward(**_arguments(reward, available))
    try:
        values = [value if isinstance(value, Score) else Score(reward=float(value)) for value in returned]
    except (TypeError, ValueError) as error:
        raise SettingError("reward", returned, "return a list of floats or Scores, NaN where it failed") from error
    if len(values) != len(completions):
        remedy = f"return one for each of the {len(completions)} completions"
        raise SettingError("reward", f"{len(values)} values", remedy)
    return values


def _arguments(reward: Reward, available: dict[str, Any]) -> dict[str, Any]:
    """What `reward` asks for by name, all there is if it takes **kwargs; its defaults stand in for the rest."""
    parameters = inspect.signature(reward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in available:
            there = ", ".join(sorted(available))
            raise SettingError("reward", parameter.name, f"name its arguments after what there is: {there}")
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return available
    return {p.name: available[p.name] for p in named if p.name in available}


def rouge(kind: str) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """ROUGE F1 against the reference (`rouge1`, `rouge2`, `rougeL`), as the rouge-score package computes it.

    Raises: DependencyError if the package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise DependencyError("reward", kind, "install it: pip install 'rlgkd[metrics]'") from error
    scorer = RougeScorer([kind], use_stemmer=False)

    def score(completions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [
            scorer.score(reference, completion)[kind].fmeasure
            for reference, completion in zip(references, completions, strict=True)
        ]

    return score
