"""Examples of a report: their verdict, the words that differ, the badges of the oracle."""

from __future__ import annotations

from typing import Any

import sample_run

from rlgkd.scripts.report.examples import MOST_WORDS, marked_difference, read_example


def completion(text: str, reward: float, **quality: float) -> dict[str, Any]:
    return {"text": text, "reward": reward, "parts": {"entailment": reward}, "quality": quality, "stop": "end"}


def test_the_verdict_is_the_oracles_and_only_without_one_the_rewards() -> None:
    low, high = completion("a", 0.1, truth=0.0), completion("b", 0.9, truth=1.0)
    assert read_example({"before": low, "after": high}).verdict == "improved"
    assert read_example({"before": high, "after": low}).verdict == "worse"
    praised = completion("c", 0.99, truth=0.0)
    example = read_example({"before": high, "after": praised})
    assert (example.verdict, example.judged_by) == ("worse", "truth")
    example = read_example({"before": completion("a", 0.1), "after": completion("b", 0.9)})
    assert (example.verdict, example.judged_by) == ("improved", "reward")
    assert read_example({"after": high}).verdict == "same"


def test_the_words_that_differ_are_marked_in_both_texts() -> None:
    old, new = marked_difference("a farm was sold in May", "a farm was bought in May")
    assert [piece for piece, differs in old if differs] == ["sold"]
    assert [piece for piece, differs in new if differs] == ["bought"]
    assert "".join(piece for piece, _ in old) == "a farm was sold in May"


def test_texts_with_little_in_common_and_long_ones_come_unmarked() -> None:
    assert marked_difference("a farm was sold", "it rained") == (
        [("a farm was sold", False)],
        [("it rained", False)],
    )
    long = "word " * MOST_WORDS
    assert marked_difference(long, long + "more") == ([(long, False)], [(long + "more", False)])


def test_the_oracles_verdict_is_a_badge_and_other_measures_are_details() -> None:
    judged = completion("x", 0.5, truth=1.0, parsable=0.0, coverage=0.5, rouge2=0.25, mine=0.123456) | {
        "stop": "length"
    }
    (shown,) = read_example({"after": judged}).completions
    assert shown.badges == [
        ("good", "\N{CHECK MARK} true"),
        ("bad", "\N{BALLOT X} unparsable"),
        ("partly", "coverage 50%"),
    ]
    assert shown.details == [
        ("entailment", "0.500"),
        ("ROUGE-2", "0.250"),
        ("mine", "0.1235"),
        ("cut", "at the limit"),
    ]
    assert shown.reward == "0.500"


def test_before_after_and_teacher_are_shown_as_far_as_they_are_there() -> None:
    example = read_example(sample_run.summary()["examples"][0])
    assert [shown.kind for shown in example.completions] == ["before", "after", "teacher"]
    assert example.prompt.endswith("Summary:") and example.reference
    assert [shown.kind for shown in read_example({"after": completion("x", 0.5)}).completions] == ["after"]
    assert read_example({}).completions == []
