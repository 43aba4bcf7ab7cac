"""The page of a run: it shows its data, is valid, escapes hostile text, and works in a browser."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sample_run
from browser import Outline, assert_valid_and_self_contained, browse, in_frame, needs_browser, title_of
from sample_run import interval, make_run

from rlgkd.errors import CheckpointError
from rlgkd.scripts.report.html import write_report
from rlgkd.scripts.report.run_files import read_run
from rlgkd.scripts.report.view import run_view

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\"'&{{7*7}}\u202e\ud800"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def report(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_shows_its_data_and_is_valid(run: Path) -> None:
    page = report(run)
    assert_valid_and_self_contained(page)
    words = Outline(page).words
    view = run_view(read_run(run))
    assert f"On 512 test prompts, truth went {view['headlines'][0].course}." in words
    for row in view["rows"]:
        for text in (row.metric.label, row.metric.value(row.after.mean), row.change_text, view["marks"][row.mark]):
            assert text in words
    for panel in view["curves"]:
        assert panel.svg in page and panel.ends in words
    assert page.count("<svg") == len(view["curves"]) + len(view["dumbbells"]) == 6
    for example in view["examples"]:
        assert " ".join(example.prompt.split()) in words
    assert words.count("asked for") == 0, "as many tokens were generated as were asked for"


def test_remarks_problems_and_exploitation_are_on_the_page(tmp_path: Path) -> None:
    summary = sample_run.summary()
    summary["change"]["truth"] = interval(-0.2, 0.05)
    summary["rewards"] = {"scored": 1920, "failed": 12, "first_failure": f"ValueError: {HOSTILE}", "always": None}
    run = make_run(tmp_path, summary)
    (run / "config.yaml").write_text("a: [1")
    page = report(run)
    assert_valid_and_self_contained(page)
    words = Outline(page).words
    assert "may have been exploited" in words
    assert "The reward failed for 12 of 1,920 samples" in words
    assert "config.yaml is not YAML" in words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0}, "pure reinforcement learning"),
        ({"alpha": 1.0}, "pure distillation"),
        ({"alpha": 0.25}, "reward − α · reverse KL to the teacher, with α = 0.25"),  # noqa: RUF001 - as the page has it
        ({"alpha": 0.25, "alpha_end": 0.5}, "α went from 0.25 to 0.5"),  # noqa: RUF001
        ({"stages": [{"name": "SFT"}, {"name": "RL"}]}, "It trained in 2 stages: SFT, RL."),
    ],
)
def test_the_objective_is_written_with_its_alpha(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    assert words in Outline(report(make_run(tmp_path, sample_run.summary() | settings))).words


def test_without_a_teacher_the_divergence_is_to_the_references(tmp_path: Path) -> None:
    folder = make_run(tmp_path, sample_run.summary() | {"alpha": 1.0, "teacher": ""})
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("teacher: embedded:grounded-teacher", 'teacher: ""'))
    assert "It minimised the reverse KL to the references alone" in Outline(report(folder)).words


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"before": 3, "after": [1]},
        {"after": {"truth": {"mean": float("nan"), "low": None, "high": "x"}}},
        {"examples": [1, {}, {"after": 2}]},
        {"alpha": "much", "tokens": None, "seconds": float("inf"), "name": 5, "examples": {"a": 1}},
        sample_run.summary() | {"before": {}, "change": {}, "teacher_scores": {}, "examples": []},
    ],
)
def test_a_damaged_summary_has_a_valid_page(tmp_path: Path, summary: dict[str, Any]) -> None:
    page = report(make_run(tmp_path, summary))
    assert_valid_and_self_contained(page)
    assert "nan" not in Outline(page).words.lower()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"before": {"truth'),
        ("summary.json", "[]"),
        ("config.yaml", "a: [1"),
        ("config.yaml", "- 1"),
        ("config.yaml", ""),
        ("progress.csv", ""),
        ("progress.csv", "\x00,\x00\n1"),
        ("progress.csv", "time/total_timesteps,train/entropy\n"),
        ("progress.csv", "time/total_timesteps,train/entropy\n100,1.5\n"),
        ("progress.csv", "time/total_timesteps,train/entropy\n100,1.5\n200"),
        ("progress.csv", "train/entropy\n1.5\nnan\ninf\n1.25\nbroken\n"),
    ],
)
def test_a_damaged_file_has_a_valid_page(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    assert_valid_and_self_contained(report(run))


def test_a_page_says_what_is_not_there_yet(run: Path, tmp_path: Path) -> None:
    (run / "progress.csv").write_text("".join((run / "progress.csv").read_text().splitlines(keepends=True)[:2]))
    assert "they need two updates" in Outline(report(run)).words
    (run / "summary.json").unlink()
    assert "not been evaluated yet" in Outline(report(run)).words
    (tmp_path / "empty").mkdir()
    assert "No progress has been recorded yet" in Outline(report(tmp_path / "empty")).words


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="name the folder"):
        write_report(tmp_path / "nothing")


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    summary = sample_run.summary()
    completion = {"text": HOSTILE, "reward": 0.5, "parts": {HOSTILE: 0.5}, "quality": {HOSTILE: 0.5}, "stop": HOSTILE}
    summary["examples"] = [
        {"key": HOSTILE, "prompt": HOSTILE, "reference": HOSTILE}
        | {kind: completion for kind in ("before", "after", "teacher")}
    ]
    summary |= {key: HOSTILE for key in ("name", "env", "student", "teacher", "agent", "divergence", "split")}
    summary["rewards"] = {"scored": 2, "failed": 1, "first_failure": HOSTILE, "always": None}
    summary["after"][HOSTILE] = summary["before"][HOSTILE] = interval(0.5, 0.1)
    run = make_run(tmp_path, summary)
    (run / "config.yaml").write_bytes(f"name: '{HOSTILE}'".encode(errors="replace") + b"\xff\x00")
    page = report(run)
    tags = Outline(page).tags
    assert [tag for tag, _ in tags].count("script") == 1 and not any(tag == "img" for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "{{7*7}}" in page


def test_the_same_input_gives_the_same_bytes_whatever_the_folder_and_the_style(tmp_path: Path) -> None:
    import matplotlib

    first = write_report(make_run(tmp_path / "a")).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        second = write_report(make_run(tmp_path / "b")).read_bytes()
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert written == ["config.yaml", "progress.csv", "report.html", "summary.json"]


def test_a_long_run_stays_a_small_page(run: Path) -> None:
    (run / "progress.csv").write_text(sample_run.progress(random.Random(2), updates=20_000))
    assert len(write_report(run).read_bytes()) < 1_500_000


# In a browser


def shown_verdicts(document: str) -> Counter[str]:
    """Count the visible examples of each verdict."""
    articles = [attributes for tag, attributes in Outline(document).tags if tag == "article"]
    return Counter(attributes["data-verdict"] or "" for attributes in articles if "hidden" not in attributes)


@needs_browser
def test_the_filter_shows_what_it_names(run: Path, tmp_path: Path) -> None:
    page = write_report(run)
    profile = tmp_path / "profile"
    view = run_view(read_run(run))
    expected = Counter(example.verdict for example in view["examples"])
    document, console = browse(page, profile)
    assert console == [] and shown_verdicts(document) == expected
    document, console = browse(page, profile, "#filter=improved")
    assert console == [] and shown_verdicts(document) == {"improved": expected["improved"]}
    assert f"{expected['improved']} of 20 examples" in document
    examples = sample_run.summary()["examples"]
    word = max(examples[2]["reference"].split(), key=len)
    having = sum(word.lower() in json.dumps(example).lower() for example in examples)
    document, console = browse(page, profile, f"#q={word.upper()}%20summary")
    assert console == [] and 0 < having < 20 and shown_verdicts(document).total() == having


@needs_browser
def test_a_models_script_does_not_run(tmp_path: Path) -> None:
    summary = sample_run.summary()
    for example in summary["examples"]:
        example["after"]["text"] = example["prompt"] = HOSTILE
    document, console = browse(write_report(make_run(tmp_path / "run", summary)), tmp_path / "profile")
    assert console == [] and "<title>owned" not in document


@needs_browser
@pytest.mark.parametrize("long", [False, True])
def test_a_phone_need_not_scroll_sideways(tmp_path: Path, long: bool) -> None:
    summary = sample_run.summary()
    if long:
        summary |= {"name": "x" * 200, "student": "/models/" + "y" * 200, "agent": "z" * 100}
        summary["examples"][0]["after"]["text"] = "w" * 500
        summary["after"]["v" * 80] = summary["before"]["v" * 80] = interval(0.5, 0.1)
    page = report(make_run(tmp_path / "run", summary))
    frame = tmp_path / "frame.html"
    frame.write_text(
        in_frame(
            page,
            390,
            "document.title = `${seen.documentElement.clientWidth} ${seen.documentElement.scrollWidth}` +"
            "[...seen.querySelectorAll('body *')].filter(e => !e.closest('svg, thead, .sr')"  # for screen readers
            "&& e.getBoundingClientRect().right > 390).map(e => ` ${e.tagName}.${e.className}`).join('');",
        ),
        encoding="utf-8",
    )
    document, console = browse(frame, tmp_path / "profile")
    assert title_of(document) in ("390 390", "375 375") and console == []
