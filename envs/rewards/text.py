"""Rewards that compare texts: overlap with a reference, exact and numeric match, patterns, length.

Each takes `completions` and `references` (or completions alone) and returns one number in [0, 1] for each completion;
its docstring says how a policy could exploit it. A reference may be a tuple of right answers: the best match counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rlgkd.errors import DependencyError, SettingError

RightAnswers = str | Sequence[str]
"""A reference, or several, of which any is right."""
NUMBER = r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


class BestMatch:
    """Compares each completion with its right answers; the best one counts."""

    needs_references = True
    """Without a reference there is nothing to compare with: a row that has none cannot be used."""

    def __init__(self, compare: Callable[[str, str], float]) -> None:
        """Take the comparison of a completion with one reference."""
        self._compare = compare

    def __call__(self, completions: Sequence[str], references: Sequence[RightAnswers]) -> list[float]:
        """Return the value of each completion."""
        return [
            max(self._compare(completion, answer) for answer in ([given] if isinstance(given, str) else given))
            for completion, given in zip(completions, references, strict=True)
        ]


def rouge(kind: str) -> BestMatch:
    """ROUGE F1 against the reference (`rouge1`, `rouge2`, `rougeL`), as the rouge-score package computes it.

    Exploited by frequent words in any order (`rouge1`).

    Raises: DependencyError if the package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise DependencyError("reward", kind, "install it: pip install 'rlgkd[metrics]'") from error
    if not re.fullmatch(r"rouge(?:[1-9]|L|Lsum)", kind):
        raise SettingError("kind", kind, "choose one of rouge1, rouge2, ..., rouge9, rougeL, rougeLsum")
    scorer = RougeScorer([kind], use_stemmer=False)
    return BestMatch(lambda completion, reference: float(scorer.score(reference, completion)[kind].fmeasure))


def bleu() -> BestMatch:
    """BLEU of each sentence against its reference, as sacrebleu computes it (effective order), divided by 100.

    Exploited by short texts of safe words, as far as the brevity penalty allows.

    Raises: DependencyError if the package is not installed.
    """
    return _sacrebleu("sentence_bleu")


def chrf() -> BestMatch:
    """chrF (character n-grams) of each sentence against its reference, as sacrebleu computes it, divided by 100.

    Raises: DependencyError if the package is not installed.
    """
    return _sacrebleu("sentence_chrf")


def _sacrebleu(name: str) -> BestMatch:
    try:
        import sacrebleu
    except ImportError as error:
        raise DependencyError("reward", name, "install it: pip install 'rlgkd[metrics]'") from error
    measure = getattr(sacrebleu, name)
    return BestMatch(lambda completion, reference: float(measure(completion, [reference]).score) / 100)


def exact(*, ignore_case: bool = False) -> BestMatch:
    """1 if the completion is the reference, except for white space; a longer text that contains it earns nothing."""

    def normalized(text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if ignore_case else text

    return BestMatch(lambda completion, reference: float(normalized(completion) == normalized(reference)))


def numeric(*, marker: str = "####", tolerance: float = 1e-6) -> BestMatch:
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

    def is_right(completion: str, reference: str) -> float:
        value = answer(completion)
        return float(value is not None and abs(value - right_answer(reference)) <= tolerance)

    return BestMatch(is_right)


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
