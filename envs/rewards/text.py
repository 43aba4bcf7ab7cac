"""Rewards that compare texts: overlap with a reference, exact and numeric match, patterns, length.

Each takes `completions` and `references` (or completions alone) and returns one number in [0, 1] for each completion;
its docstring says how a policy could exploit it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rlgkd.errors import DependencyError, SettingError

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

    Exploited by short texts of safe words, as far as the brevity penalty allows.

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
    """1 if the completion is the reference, except for white space; a longer text that contains it earns nothing."""

    def normalized(text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if ignore_case else text

    def score(completions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(normalized(c) == normalized(r)) for c, r in zip(completions, references, strict=True)]

    return score


def numeric(*, marker: str = "####", tolerance: float = 1e-6) -> Matching:
    """1 if the number after the last marker, at the end of the text, is the reference's.

    Nothing but the number may follow the marker, so naming the right number before, or several, earns nothing. The
    reference is a number, or a text that ends with marker and number too.

    Raises: SettingError for an empty marker. ValueError, when called, for a reference without a number.
    """
    if not marker:
        raise SettingError("marker", marker, "give the text that stands before the answer")
    ending = re.compile(re.escape(marker) + rf"\s*({NUMBER})\s*\.?\s*")

    def answer(text: str) -> float | None:
        start = text.rfind(marker)
        match = ending.fullmatch(text[start:].rstrip()) if start >= 0 else None
        return float(match[1].replace(",", "")) if match else None

    def right_answer(reference: str) -> float:
        value = answer(reference)
        return float(reference.replace(",", "")) if value is None else value

    def is_right(completion: str, reference: str) -> bool:
        value = answer(completion)
        return value is not None and abs(value - right_answer(reference)) <= tolerance

    def score(completions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(is_right(c, r)) for c, r in zip(completions, references, strict=True)]

    return score


def pattern(regular_expression: str) -> Callable[[Sequence[str]], list[float]]:
    """1 if the whole completion, without outer white space, matches: a format. Exploited by any text of that form.

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
    """1 up to so many words, then falling linearly to 0 at twice as many. Exploited by empty texts.

    Raises: SettingError for words below 1.
    """
    if words < 1:
        raise SettingError("words", words, "give 1 or more")

    def score(completions: Sequence[str]) -> list[float]:
        return [min(1.0, max(0.0, 2 - len(text.split()) / words)) for text in completions]

    return score
