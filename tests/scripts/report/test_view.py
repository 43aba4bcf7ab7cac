"""What the page of a run shows, as data: facts, headlines, remarks, curves; and what it shows of damaged files."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import sample_run
from sample_run import interval, make_run

from rlgkd.scripts.report.lenient import to_interval
from rlgkd.scripts.report.run_files import read_run
from rlgkd.scripts.report.view import run_view


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def view(folder: Path) -> dict[str, Any]:
    return run_view(read_run(folder))


def labels(folder: Path) -> list[str]:
    return [panel.label for panel in view(folder)["curves"]]


def test_the_headlines_are_the_oracles_truth_first_then_reward_quality_and_distance(run: Path) -> None:
    shown = view(run)
    assert [row.metric.key for row in shown["headlines"]] == ["truth", "reward", "rouge2", "reverse_kl"]
    assert shown["title"] == "Grounded summaries, reward and teacher"


def test_the_facts_say_what_was_trained_and_how(run: Path) -> None:
    assert view(run)["facts"] == {
        "env": "rlgkd/GroundedSummary-v0",
        "student": "embedded:grounded-student",
        "teacher": "embedded:grounded-teacher",
        "agent": "Reinforce",
        "split": "test",
        "alpha": 0.25,
        "alpha_end": 0.25,
        "divergence": "reverse KL",
        "beta": None,
        "updates": "300",
        "tokens": "268,800",
        "tokens_requested": "268,800",
        "prompts": "512",
        "time": "12 min",
    }


def test_the_reward_of_texts_that_are_not_the_students_is_called_so(run: Path) -> None:
    """As in SFT, where it is flat and says nothing of the model."""

    def first() -> str:
        return run_view(read_run(run))["curves"][0].label

    assert first() == "Reward"
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("student_fraction: 1.0", "student_fraction: 0.0"))
    assert first() == "Reward of the texts it learned from"
    (run / "config.yaml").write_text(
        config.replace("student_fraction: 1.0", "student_fraction: 0\nstudent_fraction_end: 1")
    )
    assert first() == "Reward"


def test_tokens_that_were_requested_and_generated_are_both_known(run: Path) -> None:
    (run / "config.yaml").write_text(sample_run.CONFIG.replace("tokens: 268800", "tokens: 268000"))
    facts = view(run)["facts"]
    assert (facts["tokens"], facts["tokens_requested"]) == ("268,800", "268,000")


def test_a_reward_that_rose_while_truth_fell_is_called_out(tmp_path: Path) -> None:
    summary = sample_run.summary()
    assert view(make_run(tmp_path, summary))["exploited"] == []
    summary["change"]["truth"] = interval(-0.2, 0.05)
    assert view(make_run(tmp_path, summary))["exploited"] == ["Truth"]
    summary["change"]["reward"] = interval(0.0, 0.05)
    assert view(make_run(tmp_path, summary))["exploited"] == []


def test_a_reward_that_never_differed_is_remarked_and_no_headline(tmp_path: Path) -> None:
    summary = sample_run.summary()
    summary["rewards"] = {"scored": 64, "failed": 0, "first_failure": None, "always": 0.0}
    for group in ("before", "after", "teacher_scores", "change"):
        summary[group] = {"reward": interval(0.0, 0.0), "rouge2": interval(0.4, 0.0)}
    shown = view(make_run(tmp_path, summary))
    assert shown["remarks"] == [
        "The reward was the same, 0.000, for all samples: nothing to learn from; look at rollouts.jsonl."
    ]
    assert [row.metric.key for row in shown["headlines"]] == ["rouge2"]
    assert [row.mark for row in shown["rows"]] == ["unclear", "better"]


def test_examples_have_the_verdict_of_the_oracle(run: Path) -> None:
    shown = view(run)
    truths = [
        [example[when]["quality"]["truth"] for when in ("before", "after")]
        for example in sample_run.summary()["examples"]
    ]
    expected = ["improved" if new > old else "worse" if new < old else "same" for old, new in truths]
    assert [example.verdict for example in shown["examples"]] == expected
    assert set(expected) == {"improved", "worse", "same"} and shown["judged_by"] == "truth"


def test_the_curves_have_their_ends(run: Path) -> None:
    panels = {panel.label: panel for panel in view(run)["curves"]}
    assert list(panels) == ["Reward", "Divergence to the teacher", "Length", "Entropy"]
    first, _, last = panels["Divergence to the teacher"].ends.split()
    assert float(first) == pytest.approx(0.61, abs=0.05) and float(last) == pytest.approx(0.28, abs=0.05)
    assert panels["Length"].unit == "tokens per text"


def test_a_curve_needs_two_updates(run: Path) -> None:
    lines = (run / "progress.csv").read_text().splitlines(keepends=True)
    (run / "progress.csv").write_text("".join(lines[:3]))
    assert len(view(run)["curves"]) == 4
    (run / "progress.csv").write_text("".join(lines[:2]))
    assert view(run)["curves"] == []


def test_alpha_is_drawn_only_where_it_changed(run: Path) -> None:
    assert "Alpha" not in labels(run)
    moved = sample_run.progress(random.Random(1)).replace(",0.25,", ",0.5,", 100)
    (run / "progress.csv").write_text(moved)
    assert "Alpha" in labels(run)


def test_curves_without_tokens_are_drawn_over_updates(run: Path) -> None:
    (run / "progress.csv").write_text("train/entropy\n1.5\nnan\ninf\n1.25\nbroken\n")
    (panel,) = view(run)["curves"]
    assert "updates" in panel.svg and panel.ends.startswith("1.50")


# What it survives


def test_a_run_without_evaluation_is_known_from_its_config_and_progress(run: Path) -> None:
    (run / "summary.json").unlink()
    shown = view(run)
    assert shown["problems"] == ["summary.json is not there (yet)"]
    assert shown["facts"]["student"] == "embedded:grounded-student" and shown["facts"]["tokens"] == "268,800"
    assert len(shown["curves"]) == 4
    assert shown["rows"] == [] and shown["dumbbells"] == {} and shown["headlines"] == []


def test_an_evaluation_that_has_only_begun_is_shown_as_far_as_it_is_known(tmp_path: Path) -> None:
    begun = sample_run.summary() | {"before": {}, "change": {}, "teacher_scores": {}, "examples": []}
    shown = view(make_run(tmp_path, begun))
    assert shown["headlines"][0].course == "88.0%"
    assert all(math.isnan(row.change.mean) and row.mark == "" for row in shown["rows"])


def test_an_empty_folder_has_three_problems(tmp_path: Path) -> None:
    shown = view(tmp_path)
    assert [line.split()[0] for line in shown["problems"]] == ["config.yaml", "summary.json", "progress.csv"]
    assert shown["facts"]["updates"] is None and shown["curves"] == [] and shown["title"] == tmp_path.name


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("summary.json", '{"before": {"truth', ["summary.json is not JSON"]),
        ("summary.json", "[]", []),
        ("summary.json", '{"before": 3, "after": [1]}', []),
        ("config.yaml", "a: [1", ["config.yaml is not YAML"]),
        ("config.yaml", "- 1", []),
        ("progress.csv", "\x00,\x00\n1", []),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_shown(
    run: Path, name: str, content: str, problems: list[str]
) -> None:
    (run / name).write_text(content)
    shown = view(run)
    assert shown["problems"] == problems
    assert shown["facts"]["student"] == "embedded:grounded-student"


def test_a_number_that_is_none_reads_as_unknown() -> None:
    assert to_interval(0.5).mean == 0.5 and math.isnan(to_interval(0.5).low)
    broken = {"mean": math.nan, "low": None, "high": "x"}
    for value in (None, "x", True, broken, [1]):
        assert math.isnan(to_interval(value).mean)
    assert to_interval({"mean": "0.5", "low": 0, "high": 1}).high == 1.0
