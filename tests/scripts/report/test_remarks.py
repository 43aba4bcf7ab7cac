"""What is said of a run in addition to its table: failures, collapses, exploited rewards; and of which runs nothing."""

from __future__ import annotations

import pytest
import sample_run
from sample_run import interval

from rlgkd.scripts.report.metrics import measure_rows
from rlgkd.scripts.report.remarks import judged_rows, remarks


def of(measures: dict[str, tuple[float, ...]], change: float = 1.0, **more: object) -> list[str]:
    """The remarks on such a run."""
    return remarks(summary_of(measures, change, **more))


def summary_of(measures: dict[str, tuple[float, ...]], change: float = 1.0, **more: object) -> dict[str, object]:
    """That of a run whose measures are (before, after[, teacher])."""
    names = ("before", "after", "teacher_scores")
    summary = {
        name: {key: interval(values[place], 0.01) for key, values in measures.items() if place < len(values)}
        for place, name in enumerate(names)
    }
    return summary | {"change": {key: interval(change, 0.01) for key in measures}} | more


def test_failed_rewards_are_reported_with_the_first_reason() -> None:
    assert remarks(sample_run.summary()) == []
    rewards = {"scored": 1920, "failed": 12, "first_failure": "ValueError: no", "always": None}
    (remark,) = remarks({"rewards": rewards})
    assert remark == "The reward failed for 12 of 1,920 samples, which were left out. First: ValueError: no"


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ({"entropy": (0.784, 0.002, 0.5)}, "The texts have collapsed: the entropy of a token went from 0.784 to 0.002"),
        ({"entropy": (0.784, 6.846)}, "The texts have become random: the entropy of a token went from 0.784 to 6.846"),
        ({"reverse_kl": (1.1, 13.2)}, "The student has left its teacher: the reverse KL went from 1.100 to 13.200"),
        ({"reverse_kl": (0.0, 1.5)}, "The student has left its teacher: the reverse KL went from 0.000 to 1.500"),
        ({"ended": (0.3, 0.0)}, "0.0% of the texts end by themselves"),
        (
            {"reward": (0.6, 0.97), "length": (16.0, 8.0)},
            "The reward rose while the texts went from 16.0 to 8.0 tokens",
        ),
        ({"reward": (0.6, 0.97), "length": (16.0, 40.0)}, "The reward rose while the texts went from 16.0 to 40.0"),
    ],
)
def test_what_has_gone_wrong_is_said(measures, said):
    (sentence,) = of(measures)
    assert sentence.startswith(said)


@pytest.mark.parametrize(
    "measures",
    [
        {"entropy": (0.784, 0.002, 0.003)},  # the teacher is as certain
        {"entropy": (2.9, 5.0, 2.8)},
        {"entropy": (2.0, 6.5, 6.6)},  # the teacher is as random
        {"reverse_kl": (0.001, 0.4)},  # a little way from its own start
        {"reverse_kl": (8.8, 13.0)},
        {"ended": (0.0, 0.4)},
        {"reward": (0.6, 0.9), "length": (16.0, 14.0)},
        {"length": (16.0, 8.0)},
        {"entropy": (float("nan"), 0.002), "ended": (0.1, float("nan"))},
        {},
    ],
)
def test_of_other_runs_nothing_is_said(measures):
    assert of(measures) == []


def test_a_shorter_text_is_no_remark_where_the_reward_did_not_rise():
    assert of({"reward": (0.6, 0.97), "length": (16.0, 8.0)}, change=0.0) == []


def test_a_divergence_to_the_own_start_is_moved_not_worse_and_has_no_percentage():
    start = -3.5e-9
    summary = {
        name: {"reverse_kl": interval(value, 1e-4)}
        for name, value in {"before": start, "after": 0.013, "change": 0.013 - start}.items()
    }
    (row,) = measure_rows(summary)
    assert (row.mark, row.change_text) == ("changed", "+0.013")


COLLAPSED = {"entropy": (3.5, 0.1)}
LEFT = {"reverse_kl": (0.0, 1.8)}
SHORTER = {"reward": (-0.5, 0.8), "length": (18.0, 12.0)}


@pytest.mark.parametrize(
    ("measures", "known"),
    [
        (COLLAPSED, {"distinct": 1.0}),  # sure of each text, and of another one for each prompt
        (LEFT, {"trained_on": ["references"]}),
        (LEFT, {"trained_on": ["references", "reward"]}),
        (SHORTER, {"trained_on": ["references"]}),
        (SHORTER, {"trained_on": ["teacher"]}),
    ],
)
def test_what_fine_tuning_is_for_is_no_fault(measures, known):
    assert of(measures, **known) == []
    assert len(of(measures)) == 1


@pytest.mark.parametrize(
    ("measures", "known"),
    [
        (COLLAPSED, {"distinct": 0.1}),
        (LEFT, {"trained_on": ["reward"]}),
        (LEFT, {"trained_on": ["references", "teacher"]}),
        (SHORTER, {"trained_on": ["reward", "teacher"]}),
    ],
)
def test_what_a_run_was_trained_on_leaves_other_faults(measures, known):
    assert len(of(measures, **known)) == 1


@pytest.mark.parametrize("wrong", [{"entropy": (3.5, 0.1)}, {"reverse_kl": (1.1, 13.2)}, {"length": (16.0, 8.0)}])
def test_what_texts_gone_wrong_raise_is_in_doubt_and_not_better(wrong):
    raised = {"reward": (0.6, 0.97), "ended": (0.3, 1.0), "truth": (0.2, 0.3)}
    for measures, mark in ((raised, "better"), (raised | wrong, "doubtful")):
        marks = {row.metric.key: row.mark for row in judged_rows(summary_of(measures))}
        assert (marks["reward"], marks["ended"], marks["truth"]) == (mark, mark, "better")
