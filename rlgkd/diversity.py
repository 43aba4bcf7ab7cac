"""Diversity of the completions of one prompt, and the probability that one of several is correct.

Words are separated by white space. Not here: characters, embeddings, and any comparison across prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import reduce

from rlgkd.errors import SettingError

ORDER = 4
"""The longest n-grams that self-BLEU counts, in words."""


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of distinct n-grams among all n-grams of the texts: 1 if none occurs twice; NaN if no text has n words.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function", arXiv 1510.03055, section 5.2.

    Examples:
        >>> distinct(["a dog", "a cat"], 1), distinct(["a dog", "a cat"], 2)
        (0.75, 1.0)
    """
    grams = [gram for text in texts for gram in _grams(text.split(), n).elements()]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text with the others as references, in [0, 1]: 1 if all are the same.

    The precisions of 2 to 4 words are smoothed by adding 1 to both counts, since short texts often share no four words
    (Lin and Och 2004). The brevity penalty uses the reference nearest in length, of two the shorter.

    Source: Zhu et al. 2018, "Texygen", arXiv 1802.01886.

    Raises: SettingError for fewer than two texts.

    Examples:
        >>> self_bleu(["a dog ran home", "a dog ran home"]), round(self_bleu(["a dog ran home", "the cat sat"]), 2)
        (1.0, 0.0)
    """
    if len(texts) < 2:
        raise SettingError("texts", len(texts), "give at least two: each is compared with the others")
    words = [text.split() for text in texts]
    return sum(_bleu(text, words[:row] + words[row + 1 :]) for row, text in enumerate(words)) / len(words)


def pass_at(k: int, *, right: int, samples: int) -> float:
    """Probability that at least one of k texts is correct: the unbiased estimate from `right` of `samples`.

        1 - C(samples - right, k) / C(samples, k)

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, equation 1.

    Raises: SettingError unless 1 <= k <= samples.

    Examples:
        >>> pass_at(1, right=1, samples=4), pass_at(2, right=1, samples=4)
        (0.25, 0.5)
    """
    if not 1 <= k <= samples:
        raise SettingError("k", k, f"give a number between 1 and the samples, {samples}")
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def _bleu(text: Sequence[str], others: Sequence[Sequence[str]]) -> float:
    if not text:
        return 0.0
    log_precisions = []
    for n in range(1, min(ORDER, len(text)) + 1):
        grams = _grams(text, n)
        reference_grams = reduce(Counter.__or__, (_grams(other, n) for other in others))
        smoothing = int(n > 1)
        matches = (grams & reference_grams).total() + smoothing
        if matches == 0:
            return 0.0
        log_precisions.append(math.log(matches / (grams.total() + smoothing)))
    nearest_length = min((abs(len(other) - len(text)), len(other)) for other in others)[1]
    brevity = min(0.0, 1 - nearest_length / len(text))
    return math.exp(brevity + sum(log_precisions) / len(log_precisions))


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
