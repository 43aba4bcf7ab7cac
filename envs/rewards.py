"""Rewards to choose from. A reward of one's own is any function of what it names (see rlgkd.envs.calling).

What is made here takes `completions` and `references` and returns one number for each, in [0, 1]. Beside these stand
those that are models (rlgkd.envs.reward_models) or served (rlgkd.envs.serving), which say what they take and their
range. Each says how a policy could exploit it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from rlgkd.envs.calling import Grader, Reward
from rlgkd.envs.reward_models import CausalJudge, Entailment, RewardModel
from rlgkd.envs.serving import judge, served
from rlgkd.errors import DependencyError, SettingError
from rlgkd.types import Item, Score

__all__ = [
    "CausalJudge",
    "Entailment",
    "RewardModel",
    "Shaped",
    "Weighted",
    "bleu",
    "chrf",
    "exact",
    "judge",
    "length",
    "numeric",
    "pattern",
    "rouge",
    "served",
]
Matching = Callable[[Sequence[str], Sequence[str]], list[float]]
NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


def rouge(kind: str) -> Matching:
    """ROUGE F1 against the reference (`rouge1`, `rouge2`, `rougeL`), as the rouge-score package computes it.

    Exploited by frequent words in any order (`rouge1`).

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


def bleu() -> Matching:
    """BLEU of each sentence against its reference, as sacrebleu computes it (effective order), divided by 100.

    Exploited by short texts of safe words, as far as the brevity penalty lets them.

    Raises: DependencyError if the package is not installed.
    """
    return _sacrebleu("sentence_bleu")


def chrf() -> Matching:
    """chrF (character n-grams) of each sentence against its reference, as sacrebleu computes it, divided by 100.

    Raises: DependencyError if the package is not installed.
    """
    return _sacrebleu("sentence_chrf")


def _sacrebleu(name: str) -> Matching:
    try:
        import sacrebleu
    except ImportError as error:
        raise DependencyError("reward", name, "install it: pip install 'rlgkd[metrics]'") from error
    measure = getattr(sacrebleu, name)

    def score(completions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [
            float(measure(completion, [reference]).score) / 100
            for completion, reference in zip(completions, references, strict=True)
        ]

    return score


def exact(*, ignore_case: bool = False) -> Matching:
    """1 where the completion is the reference, white space aside: containing it earns nothing."""

    def plain(text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if ignore_case else text

    def score(completions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(plain(c) == plain(r)) for c, r in zip(completions, references, strict=True)]

    return score


def numeric(*, marker: str = "####", tolerance: float = 1e-6) -> Matching:
    """1 where the number behind the last marker, at the end of the text, is the reference's.

    Nothing but the number may stand there, so naming the right number on the way, or several, earns nothing. The
    reference is a number, or a text that ends with marker and number too.

    Raises: SettingError for an empty marker. ValueError, when called, for a reference without a number.
    """
    if not marker:
        raise SettingError("marker", marker, "give the text that stands before the answer")
    ending = re.compile(re.escape(marker) + rf"\s*({NUMBER})\s*\.?\s*")

    def answer(text: str) -> float | None:
        at = text.rfind(marker)
        match = ending.fullmatch(text[at:].rstrip()) if at >= 0 else None
        return float(match[1].replace(",", "")) if match else None

    def gold(text: str) -> float:
        value = answer(text)
        return float(text.replace(",", "")) if value is None else value

    def score(completions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [
            float((given := answer(c)) is not None and abs(given - gold(r)) <= tolerance)
            for c, r in zip(completions, references, strict=True)
        ]

    return score


def pattern(regular_expression: str) -> Callable[[Sequence[str]], list[float]]:
    """1 where the whole completion, outer white space aside, matches: a format. Exploited by any text of that form.

    Raises: SettingError for an expression that does not compile.
    """
    try:
        compiled = re.compile(regular_expression, re.DOTALL)
    except re.error as error:
        raise SettingError("regular_expression", regular_expression, f"it does not compile: {error}") from error

    def score(completions: Sequence[str]) -> list[float]:
        return [float(compiled.fullmatch(text.strip()) is not None) for text in completions]

    return score


def length(words: int) -> Callable[[Sequence[str]], list[float]]:
    """1 up to so many words, then falling linearly to 0 at twice as many. Exploited by writing nothing.

    Raises: SettingError for words below 1.
    """
    if words < 1:
        raise SettingError("words", words, "give 1 or more")

    def score(completions: Sequence[str]) -> list[float]:
        return [min(1.0, max(0.0, 2 - len(text.split()) / words)) for text in completions]

    return score


class Weighted:
    """A sum of rewards, each logged under its name; where one of them fails, so does the sum."""

    def __init__(self, parts: Mapping[str, tuple[float, Reward]]) -> None:
        """Take {name: (weight, reward)}.

        Raises: SettingError where there are none.

        Example:
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
