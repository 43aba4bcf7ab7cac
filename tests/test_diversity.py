"""Diversity and pass@k against hand-made cases, enumeration, and sacrebleu."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import sacrebleu

from rlgkd.diversity import distinct, pass_at, self_bleu
from rlgkd.errors import SettingError

WORDS = ["a", "dog", "cat", "ran", "sat", "home", "on", "the", "mat", "in", "town"]


def test_distinct_counts_each_n_gram_of_all_texts_once() -> None:
    texts = ["the dog ran", "the dog sat", "the dog ran"]
    assert distinct(texts, 1) == 4 / 9 and distinct(texts, 2) == 3 / 6 and distinct(texts, 3) == 2 / 3
    assert math.isnan(distinct(["a"], 2))


def test_self_bleu_is_that_of_sacrebleu_with_the_others_as_references() -> None:
    rng = random.Random(0)
    for _ in range(50):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(rng.randint(2, 5))]
        expected = [
            sacrebleu.sentence_bleu(
                text, texts[:row] + texts[row + 1 :], smooth_method="add-k", smooth_value=1, tokenize="none"
            ).score
            / 100
            for row, text in enumerate(texts)
        ]
        assert self_bleu(texts) == pytest.approx(sum(expected) / len(expected), abs=1e-9)


def test_the_same_text_again_and_again_is_one_and_nothing_in_common_is_zero() -> None:
    assert self_bleu(["a dog ran home today"] * 3) == pytest.approx(1)
    assert self_bleu(["a b", "c d"]) == 0 and self_bleu(["", "a b"]) == 0
    with pytest.raises(SettingError, match="at least two"):
        self_bleu(["alone"])


@pytest.mark.parametrize(("right", "samples"), [(0, 4), (1, 4), (3, 5), (5, 5)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_text(right: int, samples: int) -> None:
    texts = [row < right for row in range(samples)]
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(texts, k))
        assert pass_at(k, right=right, samples=samples) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_more_texts_than_there_are_is_refused() -> None:
    with pytest.raises(SettingError, match="between 1 and"):
        pass_at(5, right=1, samples=4)
