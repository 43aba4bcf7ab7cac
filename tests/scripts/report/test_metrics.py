"""Measures: how they are written and ordered, and when a change of one is better, worse or not clear."""

from __future__ import annotations

import math

import pytest
import sample_run

from rlgkd.scripts.report.formatting import DASH, MINUS
from rlgkd.scripts.report.metrics import Metric, in_report_order, measure_rows


@pytest.mark.parametrize(
    ("key", "low", "high", "mark"),
    [
        ("truth", 0.01, 0.2, "better"),
        ("truth", -0.2, -0.01, "worse"),
        ("truth", -0.1, 0.2, "unclear"),
        ("truth", 0.0, 0.0, "unclear"),
        ("reverse_kl", -0.2, -0.1, "better"),
        ("reverse_kl", 0.1, 0.2, "worse"),
        ("length", 1.0, 2.0, "changed"),
        ("something_new", 1.0, 2.0, "changed"),
        ("truth", math.nan, 0.2, ""),
    ],
)
def test_a_mark_says_whether_the_interval_excludes_zero(key: str, low: float, high: float, mark: str) -> None:
    summary = {
        "before": {key: {"mean": 1}},
        "after": {key: {"mean": 1}},
        "change": {key: {"mean": 0, "low": low, "high": high}},
    }
    assert [row.mark for row in measure_rows(summary)] == [mark]


def test_known_measures_come_in_their_order_and_unknown_ones_last() -> None:
    assert in_report_order(["zeal", "length", "truth@2", "reward"]) == ["reward", "length", "zeal", "truth@2"]
    scores = {key: {"mean": 0.5} for key in ("zeal", "length", "found", "truth", "reward")}
    labels = [row.metric.label for row in measure_rows({"after": scores})]
    assert labels == ["Reward", "Truth", "Found", "Length", "Zeal"]


def test_values_are_written_in_their_unit() -> None:
    share = Metric(key="a", label="a", share=True)
    number = Metric(key="b", label="b", relative=True)
    assert share.value(0.6214) == "62.1%"
    assert share.value(math.nan) == DASH
    assert number.value(-0.5) == f"{MINUS}0.500"
    assert number.value(-0.0001) == "0.000"


def test_changes_of_shares_are_points_and_those_of_divergences_also_percent_of_the_start() -> None:
    share = Metric(key="a", label="a", share=True)
    number = Metric(key="b", label="b", relative=True)
    assert share.change(0.05) == "+5.0 points"
    assert share.change(-0.05) == f"{MINUS}5.0 points"
    assert share.change(-0.00001) == "0.0 points"
    assert number.change(-0.25, 0.5) == f"{MINUS}0.250 ({MINUS}50%)"
    assert number.change(0.25, 0.0) == "+0.250"


def test_an_interval_is_empty_where_a_bound_is_missing() -> None:
    assert Metric(key="b", label="b").bounds(-0.2, 0.1, between=" to ") == f"{MINUS}0.200 to 0.100"
    assert Metric(key="a", label="a", share=True).bounds(0.1, math.nan) == ""


def test_a_label_in_a_sentence_is_lower_case_unless_it_is_a_name() -> None:
    labels = [Metric(key="", label=label).label_in_text for label in ("Truth", "ROUGE-2", "Reverse KL")]
    assert labels == ["truth", "ROUGE-2", "Reverse KL"]


def test_the_course_of_a_measure_has_both_ends_the_change_and_its_interval() -> None:
    rows = {row.metric.key: row for row in measure_rows(sample_run.summary())}
    assert rows["truth"].course == "from 62.1% to 88.0% (+25.9 points, 95% interval 22.0 to 29.8)"
    assert rows["reverse_kl"].change_text == f"{MINUS}0.360 ({MINUS}59%)"
    assert rows["reverse_kl"].course.startswith("from 0.612 to 0.252 nats/token (")
    begun = sample_run.summary() | {"before": {}, "change": {}, "teacher_scores": {}}
    assert {row.metric.key: row for row in measure_rows(begun)}["truth"].course == "88.0%"
