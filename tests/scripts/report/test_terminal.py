"""The table in the terminal: the numbers of the page, its verdicts in colour, and no control characters."""

from __future__ import annotations

import io
from typing import Any

import sample_run
from rich.console import Console
from sample_run import interval

from rlgkd.scripts.report.terminal import score_table


def printed(summary: dict[str, Any], **settings: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=200, **settings).print(score_table(summary))
    return out.getvalue()


def cells(summary: dict[str, Any], measure: str) -> list[str]:
    table = score_table(summary)
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    number = columns[0].index(measure)
    return [column[number] for column in columns[1:]]


def test_the_table_has_the_numbers_of_the_page() -> None:
    row = cells(sample_run.summary(), "Truth")
    assert row == ["62.1%", "88.0%", "93.1%", "+25.9 points", "22.0 to 29.8", "▲ better"]
    assert "22.0 to 29.8" in printed(sample_run.summary())


def test_a_name_cannot_control_the_terminal() -> None:
    summary = sample_run.summary()
    summary["after"]["[red]\x1b[31m"] = {"mean": 0.5}
    text = printed(summary)
    assert "[red]?[31m" in text and "\x1b" not in text


def test_without_a_teacher_there_is_no_column_for_one() -> None:
    without = sample_run.summary() | {"teacher_scores": {}}
    assert len(cells(without, "Truth")) == len(cells(sample_run.summary(), "Truth")) - 1


def test_only_a_clear_change_is_coloured() -> None:
    groups = ("before", "after", "teacher_scores", "change")
    summary = {group: {"reward": interval(0.0, 0.0), "rouge2": interval(0.4, 0.0)} for group in groups}
    lines = printed(summary, force_terminal=True).splitlines()
    green = "\x1b[32m"
    assert green in next(line for line in lines if "ROUGE-2" in line)
    assert green not in next(line for line in lines if "Reward" in line)


def test_an_evaluation_that_has_only_begun_or_is_empty_has_a_table() -> None:
    begun = sample_run.summary() | {"before": {}, "change": {}, "teacher_scores": {}, "examples": []}
    assert cells(begun, "Truth")[1] == "88.0%"
    assert score_table({}).row_count == 0
