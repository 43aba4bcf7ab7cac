"""Rewards that compare texts, on completions whose reward is known by hand."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from rlgkd.envs import rewards
from rlgkd.envs.rewards.grader import Grader
from rlgkd.errors import DependencyError, SettingError
from rlgkd.types import Item

ITEMS = [
    Item(key="a", prompt="p0", reference="r0", columns={"answer": 3, "level": 1}),
    Item(key="b", prompt="p1", reference="r1", columns={"answer": 5}),
]
TEXTS = ["three", "five!"]


def test_numeric_gives_nothing_for_merely_containing_the_answer() -> None:
    given = rewards.numeric()
    texts = [
        "3 + 4 = 7\n#### 7",
        "#### 7.0 ",
        "#### 1,007",
        "7",
        "#### 8 #### 7",
        "#### 7 #### 8",
        "#### 7 or 8",
        "#### x",
        "",
    ]
    golds = ["7", "#### 7", "1007", "7", "7", "7", "7", "7", "7"]
    assert given(texts, golds) == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert rewards.numeric(marker="Answer:")(["so Answer: -2.5."], ["-2.5"]) == [1.0]


def test_exact_pattern_and_length() -> None:
    assert rewards.exact()(["a  dog\n", "a dog.", "A dog"], ["a dog"] * 3) == [1.0, 0.0, 0.0]
    assert rewards.exact(ignore_case=True)(["A dog"], ["a dog"]) == [1.0]
    assert rewards.pattern(r"<b>.*</b>")(["<b>x\ny</b>", "say <b>x</b>"]) == [1.0, 0.0]
    assert rewards.length(2)(["", "a b", "a b c", "a b c d", "a b c d e"]) == [1.0, 1.0, 0.5, 0.0, 0.0]
    for make in (partial(rewards.pattern, "("), partial(rewards.length, 0), partial(rewards.numeric, marker="")):
        with pytest.raises(SettingError):
            make()


def test_bleu_and_chrf_are_one_for_the_reference_and_less_for_less() -> None:
    for measure in (rewards.bleu(), rewards.chrf()):
        whole, part, none = measure(["der zehnte Mai", "der Mai", "xyz"], ["der zehnte Mai"] * 3)
        assert whole == pytest.approx(1.0) and 0.1 < part < 0.9 and none < 0.05


def test_rouge_2_is_the_f1_of_shared_word_pairs() -> None:
    # One of two pairs of the completion, one of three of the reference: F1 = 2 (1/2 1/3) / (1/2 + 1/3) = 2/5.
    score = rewards.rouge("rouge2")
    assert score(["a red dog", "a"], ["a red cat sat", "a"]) == [pytest.approx(0.4), 0.0]
    assert [graded.reward for graded in Grader(score)(ITEMS, TEXTS)] == [0.0, 0.0]  # one word has no pair


def test_rouge_without_its_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(DependencyError, match=r"pip install 'rlgkd\[metrics\]'"):
        rewards.rouge("rouge2")
