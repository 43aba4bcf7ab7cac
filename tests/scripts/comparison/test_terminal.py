"""What `rlgkd compare` prints at its end: a table of scores and the findings, as in the report."""

from __future__ import annotations

import io

import sample_comparison
from rich.console import Console

from rlgkd.scripts.comparison.findings import findings
from rlgkd.scripts.comparison.terminal import answer_sentences, answer_table
from rlgkd.scripts.report.metrics import metric_of


def printed(found: dict) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(answer_table(found))
    return console.export_text()


def test_every_cell_has_a_row_with_its_mean_and_interval() -> None:
    found = sample_comparison.results((0, 0.5, 1))
    text = printed(found)
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines if line and (line[0] in ("start", "teacher") or "alpha" in line[0])] == [
        "start",
        "alpha=0",
        "alpha=0.5",
        "alpha=1",
        "teacher",
    ]
    truth = found["cells"][1]["scores"]["truth"]
    assert metric_of("truth").value(truth["mean"]) in text
    assert f"({metric_of('truth').bounds(truth['low'], truth['high'], between=' to ')})" in text


def test_the_number_of_prompts_is_that_of_the_split_and_not_the_setting() -> None:
    found = sample_comparison.results()
    found["evaluation"]["prompts"] = 1000
    assert f"prompts: {len(found['prompts'])};" in printed(found)


def test_what_is_clearly_best_has_a_mark_that_is_no_colour() -> None:
    found = sample_comparison.results()
    for cell in found["cells"]:
        for run in cell["runs"]:
            run["measures"] = {name: [0.5] * sample_comparison.PROMPTS for name in run["measures"]}
    assert "*" not in printed(found).partition("Seeds")[0]
    for number, cell in enumerate(found["cells"]):
        for run in cell["runs"]:
            run["measures"]["truth"] = [0.2 + 0.5 * number + 0.01 * n for n in range(sample_comparison.PROMPTS)]
    best = metric_of("truth").value(found["cells"][1]["scores"]["truth"]["mean"])
    assert f"*{best}" in printed(found)


def test_the_sentences_are_the_reports() -> None:
    found = sample_comparison.results()
    assert answer_sentences(found) == [" ".join(str(finding).split()) for finding in findings(found)] != []


def test_a_measure_of_the_users_own_stands_after_the_reward() -> None:
    found = sample_comparison.results()
    for one in [*found["cells"], *found["references"].values()]:
        one["scores"] = {**one["scores"], "all_right": {"mean": 0.123, "low": 0.1, "high": 0.2}}
    (head,) = (line for line in printed(found).splitlines() if "Reward" in line)
    columns = head.split()
    assert columns[:3] == ["Reward", "All", "right"] and "0.123" in printed(found)
