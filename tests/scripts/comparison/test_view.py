"""What the page of a comparison shows, as data: tables, plots by section, completions, tokens."""

from __future__ import annotations

from typing import Any

import pytest
import sample_comparison

from rlgkd.scripts.comparison.view import comparison_view

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"


def view(found: dict[str, Any], timing: dict[str, Any] | None = None) -> dict[str, Any]:
    return comparison_view(found, timing or {})


def best_marks(found: dict[str, Any]) -> dict[str, list[bool]]:
    """For each measure, which of start, cells and teacher is marked as the best."""
    return {row["metric"].key: [score["best"] for score in row["scores"]] for row in view(found)["quality"]["rows"]}


def test_tokens_that_were_trained_and_requested_are_both_shown() -> None:
    found = sample_comparison.results()
    trained = sorted(run["tokens"] for cell in found["cells"] for run in cell["runs"])
    shown = view(found)
    assert shown["tokens_trained"] == f"{trained[0]:,} to {trained[-1]:,}" and shown["tokens_requested"] == "300"
    for cell in found["cells"]:
        for run in cell["runs"]:
            run["tokens"] = 300
    shown = view(found)
    assert shown["tokens_trained"] == shown["tokens_requested"] == "300"


def test_the_title_asks_how_much_teacher_where_alpha_alone_is_varied() -> None:
    found = sample_comparison.results()
    assert view(found)["title"] == "How much teacher: small"
    assert view(found | {"vary": {"alpha": [0, 1], "beta": [0.5]}})["title"] == "small"


def test_scores_are_those_of_start_cells_and_teacher() -> None:
    found = sample_comparison.results()
    table = view(found)["quality"]
    assert table["columns"] == ["start", f"{ALPHA} = 0", f"{ALPHA} = 1", "teacher"]
    (truth,) = (row for row in table["rows"] if row["metric"].key == "truth")
    expected = [found["references"]["start"], *found["cells"], found["references"]["teacher"]]
    means = [entry["scores"]["truth"]["mean"] for entry in expected]
    assert [score["value"] for score in truth["scores"]] == [f"{100 * mean:.1f}%" for mean in means]


def test_measures_of_diversity_have_a_table_of_their_own() -> None:
    shown = view(sample_comparison.results())
    assert [row["metric"].key for row in shown["diversity"]["rows"]] == ["truth@2"]
    assert "truth@2" not in [row["metric"].key for row in shown["quality"]["rows"]]


def test_two_cells_have_one_table_of_changes_and_three_have_two() -> None:
    assert [table["name"] for table in view(sample_comparison.results())["changes"]] == [f"{ALPHA} = 0"]
    names = [table["name"] for table in view(sample_comparison.results((0, 0.5, 1)))["changes"]]
    assert names == [f"{ALPHA} = 0", f"{ALPHA} = 1"]


def test_a_probability_is_that_of_being_better_also_where_less_is_better() -> None:
    found = sample_comparison.results()
    against = found["cells"][1]["against"]["alpha=0"]
    against["truth"]["greater"] = against["reverse_kl"]["greater"] = {"mean": 0.8, "low": 0.7, "high": 0.9}
    rows = {row["metric"].key: row["cells"][0] for row in view(found)["changes"][0]["rows"]}
    assert rows["truth"]["probability"] == "0.80 (0.70 to 0.90)"
    assert rows["reverse_kl"]["probability"] == "0.20 (0.10 to 0.30)"


def test_only_a_cell_that_is_clearly_best_is_marked() -> None:
    found = sample_comparison.results()
    assert best_marks(found)["reverse_kl"] == [False] * 4, "start, two cells and the teacher"
    for name in sample_comparison.QUALITIES:
        for number, cell in enumerate(found["cells"]):
            for run in cell["runs"]:
                run["measures"][name] = [0.2 + 0.5 * number + 0.01 * n for n in range(sample_comparison.PROMPTS)]
    assert best_marks(found)["truth"] == [False, False, True, False]


def test_every_section_has_its_plots() -> None:
    timing = {"alpha=0": {"0": [1.0, 2.0, 3.0], "1": [1.1, 2.1, 3.1]}}
    plots = view(sample_comparison.results(), timing)["plots"]
    labels = {section: [panel.label for panel in panels] for section, panels in plots.items()}
    against = [f"Reward against {name}" for name in ("Reverse KL", "Truth", "Coverage", "ROUGE-2")]
    assert labels["frontier"] == against
    assert labels["curves"] == [
        *("Reward", "Truth", "Coverage", "ROUGE-2", "Divergence to the teacher", "Length", "Entropy")
    ]
    assert labels["timed"] == ["Reward", "Truth"]
    assert labels["gap"] == [f"Reward minus {name}" for name in ("Truth", "Coverage", "ROUGE-2")]
    assert labels["paths"] == [f"{ALPHA} = 0", f"{ALPHA} = 1"]
    assert labels["passes"] == ["pass@k by truth"]
    assert len(labels["positions"]) == 1


def test_one_update_draws_no_curves() -> None:
    timing = {"alpha=0": {"0": [1.0], "1": [1.1]}}
    plots = view(sample_comparison.results(updates=1), timing)["plots"]
    assert not any(plots[name] for name in ("curves", "timed", "gap", "paths"))
    assert plots["frontier"] and plots["positions"] and plots["passes"]


def test_divergences_that_are_varied_share_no_curve() -> None:
    found = sample_comparison.results()
    found["vary"] = {"divergence": ["reverse_kl", "jsd"]}
    assert "Divergence to the teacher" not in [panel.label for panel in view(found)["plots"]["curves"]]


def test_the_plot_of_a_frontier_says_its_means_to_a_screen_reader() -> None:
    found = sample_comparison.results()
    first = view(found)["plots"]["frontier"][0].svg
    assert f"alpha=1: {found['cells'][1]['scores']['reverse_kl']['mean']:.3f}" in first
    assert [look.sign for look in view(found)["legend"]] == ["●", "■"]


@pytest.mark.parametrize("stop", ["end", "length"])
def test_the_completions_of_a_prompt_come_from_start_cells_and_teacher(stop: str) -> None:
    found = sample_comparison.results()
    found["cells"][0]["runs"][0]["texts"][0]["stop"] = stop
    (example,) = view(found)["examples"]
    assert [completion["name"] for completion in example["completions"]] == ["start", "alpha=0", "alpha=1", "teacher"]
    assert [completion["number"] for completion in example["completions"]] == [None, 0, 1, None]
    assert example["completions"][1]["cut"] == (stop == "length")
    assert example["completions"][1]["measures"] == [("Reward", "0.500")]
