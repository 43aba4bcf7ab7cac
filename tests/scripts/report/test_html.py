"""The report of a run: what it says, what it survives, and, where there is a browser, how it behaves.

The run is synthetic: passages of GroundedSummary, texts that a rule damages, numbers drawn from a fixed seed.
"""

from __future__ import annotations

import html
import io
import json
import math
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlgkd.envs.tasks.grounded.oracle import judge
from rlgkd.envs.tasks.grounded.world import story
from rlgkd.errors import CheckpointError
from rlgkd.scripts.report.html import remarks, table, write_report
from rlgkd.scripts.report.metrics import Metric, read_interval, rows

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on the PATH; on Debian: apt-get install chromium"
)
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\"'&{{7*7}}\u202e\ud800"


# A run's folder


def interval(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def written(text: str, told: Any, reward: float, *, stop: str = "end") -> dict[str, Any]:
    verdict = judge(text, told.events)
    quality = {"truth": float(verdict.true), "parsable": float(verdict.parsable), "coverage": verdict.coverage}
    overlap = len(set(text.split()) & set(told.reference.split())) / len(told.reference.split())
    parts = {"entailment": reward}
    return {"text": text, "reward": reward, "parts": parts, "quality": {**quality, "rouge2": overlap}, "stop": stop}


def examples(rng: random.Random, count: int = 20) -> list[dict[str, Any]]:
    found = []
    for index in range(count):
        told = story("test", 0, index)
        wrong = story("test", 0, index + 100).reference.split()
        damaged = told.reference.split()
        damaged[rng.randrange(2)] = wrong[0]
        broken = " ".join(damaged[: len(damaged) // 2] + ["for", "for", "the"] * 3)
        bad = written(broken, told, 0.04, stop="length") if index % 4 == 0 else written(" ".join(damaged), told, 0.21)
        good = written(told.reference, told, rng.uniform(0.8, 0.99))
        before, after = {0: (good, bad), 1: (good, good)}.get(index % 6, (bad, good))
        found.append({
            "key": f"test/0/{index}", "prompt": f" {told.passage}\nSummary:", "reference": told.reference,
            "before": before, "after": after, "teacher": good,
        })  # fmt: skip
    return found


def summary() -> dict[str, Any]:
    before = {
        "reward": (0.641, 0.021), "truth": (0.621, 0.030), "parsable": (0.934, 0.016), "coverage": (0.508, 0.027),
        "rouge2": (0.412, 0.019), "reverse_kl": (0.612, 0.031), "forward_kl": (0.701, 0.038), "length": (13.2, 0.3),
        "ended": (0.982, 0.008), "entropy": (0.497, 0.020), "distinct2": (0.431, 0.009), "my_judge": (0.550, 0.040),
    }  # fmt: skip
    after = {
        "reward": (0.902, 0.014), "truth": (0.880, 0.020), "parsable": (0.981, 0.009), "coverage": (0.741, 0.022),
        "rouge2": (0.521, 0.018), "reverse_kl": (0.252, 0.016), "forward_kl": (0.344, 0.025), "length": (13.9, 0.3),
        "ended": (0.990, 0.007), "entropy": (0.268, 0.014), "distinct2": (0.424, 0.009), "my_judge": (0.570, 0.041),
    }  # fmt: skip
    teacher = {
        "reward": (0.944, 0.010), "truth": (0.931, 0.015), "parsable": (0.996, 0.004), "coverage": (0.772, 0.021),
        "rouge2": (0.566, 0.018), "length": (14.1, 0.3), "ended": (1.0, 0.0), "entropy": (0.301, 0.012),
        "distinct2": (0.436, 0.009),
    }  # fmt: skip
    return {
        "name": "Grounded summaries, reward and teacher", "env": "rlgkd/GroundedSummary-v0", "agent": "Reinforce",
        "student": "embedded:grounded-student", "teacher": "embedded:grounded-teacher", "alpha": 0.25,
        "divergence": "reverse_kl", "updates": 300, "tokens": 268_800, "seconds": 742.0,
        "prompts": 512, "split": "test",
        "before": {key: interval(*value) for key, value in before.items()},
        "after": {key: interval(*value) for key, value in after.items()},
        "teacher_scores": {key: interval(*value) for key, value in teacher.items()},
        "change": {
            key: interval(after[key][0] - before[key][0], 0.039 if key == "truth" else 1.2 * before[key][1])
            for key in before
        },
        "examples": examples(random.Random(0)),
    }  # fmt: skip


def progress(rng: random.Random, updates: int = 300) -> str:
    lines = ["rollout/ended,rollout/ep_len_mean,rollout/ep_rew_mean,rollout/student,time/iterations,"
             "time/total_timesteps,train/alpha,train/divergence,train/entropy,train/grad_norm,train/loss"]  # fmt: skip
    for step in range(1, updates + 1):
        done = 1 - math.exp(-3 * step / updates)
        divergence = 0.62 - 0.36 * done + rng.gauss(0, 0.03)
        lines.append(
            f"0.98,{13.1 + done + rng.gauss(0, 0.35):.4f},{0.64 + 0.27 * done + rng.gauss(0, 0.035):.4f},1.0,{step},"
            f"{step * 896},0.25,{'nan' if step % 50 == 0 else divergence},{0.5 - 0.24 * done + rng.gauss(0, 0.02):.4f},"
            f"{rng.uniform(0.5, 1.5):.4f},{'' if step == 1 else rng.gauss(0, 1)}"
        )
    return "\n".join(lines) + "\n"


CONFIG = """name: Grounded summaries, reward and teacher
env: rlgkd/GroundedSummary-v0
agent: Reinforce
student: embedded:grounded-student
teacher: embedded:grounded-teacher
tokens: 268800
alpha: 0.25
divergence: reverse_kl
beta: null
student_fraction: 1.0
estimator: exact
learning_rate: 0.0001
seed: 0
"""


def make_run(folder: Path, told: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "progress.csv").write_text(progress(random.Random(1)))
    (folder / "summary.json").write_text(json.dumps(summary() if told is None else told))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


class Outline(HTMLParser):
    """Every tag that was opened, and the text between tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def typed(text: str) -> str:
    """Signs as a keyboard has them, and runs of white space as one space."""
    for sign, name in (("\N{MINUS SIGN}", "-"), ("\N{EN DASH}", "--"), ("\N{GREEK SMALL LETTER ALPHA}", "alpha")):
        text = text.replace(sign, name)
    return " ".join(text.split())


# What it says


def test_the_headline_tells_the_change_with_its_interval(run: Path) -> None:
    text = typed(Outline(report(run)).text)
    assert "On 512 test prompts, truth went from 62.1% to 88.0% (+25.9 points, 95% interval 22.0 to 29.8)." in text
    assert "(1 - alpha) · reward - alpha · reverse KL to the teacher, with alpha = 0.25" in text
    assert "-0.360 (-59%)" in text  # the reverse KL's change in percent of its start


@pytest.mark.parametrize(
    ("key", "low", "high", "mark"),
    [
        ("truth", 0.01, 0.2, "better"), ("truth", -0.2, -0.01, "worse"), ("truth", -0.1, 0.2, "unclear"),
        ("truth", 0.0, 0.0, "unclear"), ("reverse_kl", -0.2, -0.1, "better"), ("reverse_kl", 0.1, 0.2, "worse"),
        ("length", 1.0, 2.0, "changed"), ("something_new", 1.0, 2.0, "changed"), ("truth", math.nan, 0.2, ""),
    ],
)  # fmt: skip
def test_a_mark_says_whether_the_interval_excludes_zero(key: str, low: float, high: float, mark: str) -> None:
    told = {
        "before": {key: {"mean": 1}},
        "after": {key: {"mean": 1}},
        "change": {key: {"mean": 0, "low": low, "high": high}},
    }
    assert [row.mark for row in rows(told)] == [mark]


def test_known_measures_come_in_their_order_and_unknown_ones_last() -> None:
    scores = {key: {"mean": 0.5} for key in ("zeal", "length", "found", "truth", "reward")}
    assert [row.metric.label for row in rows({"after": scores})] == ["Reward", "Truth", "Found", "Length", "Zeal"]


def test_numbers_are_written_in_their_unit() -> None:
    share, number = Metric(key="a", label="a", share=True), Metric(key="b", label="b", relative=True)
    assert [share.value(0.6214), typed(share.value(math.nan))] == ["62.1%", "--"]
    assert [typed(share.change(x)) for x in (0.05, -0.05, -0.00001)] == ["+5.0 points", "-5.0 points", "0.0 points"]
    assert [typed(number.value(x)) for x in (-0.5, -0.0001)] == ["-0.500", "0.000"]
    assert typed(number.change(-0.25, 0.5)) == "-0.250 (-50%)" and number.change(0.25, 0.0) == "+0.250"
    assert typed(number.bounds(-0.2, 0.1, between=" to ")) == "-0.200 to 0.100" and share.bounds(0.1, math.nan) == ""
    assert read_interval(0.5).mean == 0.5 and math.isnan(read_interval(0.5).low)
    assert all(math.isnan(read_interval(broken).mean) for broken in (None, "x"))


def test_a_reward_that_rose_while_truth_fell_is_called_out(tmp_path: Path) -> None:
    told = summary()
    assert "may have been exploited" not in report(make_run(tmp_path, told))
    told["change"]["truth"] = interval(-0.2, 0.05)
    assert "may have been exploited" in report(make_run(tmp_path, told))


def test_failed_rewards_are_told_with_the_first_reason(tmp_path: Path) -> None:
    assert remarks(summary()) == []
    rewards = {"scored": 1920, "failed": 12, "first_failure": f"ValueError: {HOSTILE}", "always": None}
    told = summary() | {"rewards": rewards}
    (line,) = remarks(told)
    assert line.startswith(
        "The reward failed for 12 of 1,920 samples, which were left out. First: ValueError: <script>"
    )
    page = Outline(report(make_run(tmp_path, told)))
    assert "The reward failed for 12 of 1,920 samples" in typed(page.text)
    assert [tag for tag, _ in page.tags].count("script") == 1 and "img" not in [tag for tag, _ in page.tags]


def test_a_reward_that_never_differed_is_no_headline(tmp_path: Path) -> None:
    told = summary() | {"rewards": {"scored": 64, "failed": 0, "first_failure": None, "always": 0.0}}
    for group in ("before", "after", "teacher_scores", "change"):
        told[group] = {"reward": interval(0.0, 0.0), "rouge2": interval(0.4, 0.0)}
    page = report(make_run(tmp_path, told))
    text = typed(Outline(page).text)
    assert "The reward was the same, 0.000, for all samples: nothing to learn from" in text
    headlines = page[page.index('<ul class="headlines">') : page.index("</ul>", page.index('<ul class="headlines">'))]
    assert "ROUGE-2" in headlines and "Reward" not in headlines and "reward went" not in text
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    console.print(table(told))
    row = next(line for line in console.file.getvalue().splitlines() if "Reward" in line)
    assert "\x1b[32m" not in row


@pytest.mark.parametrize(("alpha", "words"), [(0, "pure reinforcement learning"), (1.0, "pure distillation")])
def test_the_ends_of_alpha_have_their_names(tmp_path: Path, alpha: float, words: str) -> None:
    assert words in report(make_run(tmp_path, summary() | {"alpha": alpha}))


def test_the_page_is_accessible_and_needs_no_network(run: Path) -> None:
    page = report(run)
    tags = Outline(page).tags
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    plots = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(plots) == 6 and all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {name for _, attributes in tags for name in (attributes.get("aria-labelledby") or "").split()}
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', page))
    assert named | used <= set(ids)
    for _, attributes in tags:
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "url(http" not in page and "@import" not in page and "<dc:date" not in page
    assert "#0a0b0" not in page  # a colour that did not become a variable of the page


def test_tokens_asked_for_are_told_beside_those_that_were_generated(run: Path) -> None:
    assert "asked for" not in report(run)
    (run / "config.yaml").write_text(CONFIG.replace("tokens: 268800", "tokens: 268000"))
    assert "268,800 268,000 asked for" in typed(Outline(report(run)).text)


def test_one_update_draws_no_curve_and_says_why(run: Path) -> None:
    lines = (run / "progress.csv").read_text().splitlines(keepends=True)
    (run / "progress.csv").write_text("".join(lines[:3]))
    assert report(run).count("<svg") == 6
    (run / "progress.csv").write_text("".join(lines[:2]))
    page = report(run)
    assert page.count("<svg") == 2 and "they need two updates" in page  # what is left is before and after


def test_alpha_is_drawn_only_where_it_moved(run: Path) -> None:
    assert "weight of the divergence" not in report(run)
    moved = progress(random.Random(1)).replace(",0.25,", ",0.5,", 100)
    (run / "progress.csv").write_text(moved)
    assert "weight of the divergence" in report(run)


def test_the_terminal_table_has_the_same_numbers() -> None:
    told = summary()
    told["after"]["[red]\x1b[31m"] = {"mean": 0.5}
    out = io.StringIO()
    Console(file=out, width=140).print(table(told))
    text = out.getvalue()
    assert "62.1%" in text and "88.0%" in text and "+25.9 points" in text and "22.0 to 29.8" in text
    assert "▲ better" in text and "[red]?[31m" in text and "\x1b" not in text


# What it survives


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    told = summary()
    hostile = {"text": HOSTILE, "reward": 0.5, "parts": {HOSTILE: 0.5}, "quality": {HOSTILE: 0.5}, "stop": HOSTILE}
    told["examples"] = [
        {
            "key": HOSTILE,
            "prompt": HOSTILE,
            "reference": HOSTILE,
            "before": hostile,
            "after": hostile,
            "teacher": hostile,
        }
    ]
    told |= {key: HOSTILE for key in ("name", "env", "student", "teacher", "agent", "divergence", "split")}
    told["after"][HOSTILE] = told["before"][HOSTILE] = interval(0.5, 0.1)
    run = make_run(tmp_path, told)
    (run / "config.yaml").write_bytes(f"name: '{HOSTILE}'".encode(errors="replace") + b"\xff\x00")
    page = report(run)
    tags = Outline(page).tags
    assert [tag for tag, _ in tags].count("script") == 1 and not any(tag == "img" for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "{{7*7}}" in page


def test_a_run_without_evaluation_has_a_report(run: Path) -> None:
    (run / "summary.json").unlink()
    page = report(run)
    assert "not been evaluated yet" in page and "summary.json is not there (yet)" in page
    assert "embedded:grounded-student" in page and "268,800" in page
    assert page.count("<svg") == 4 and "<table" not in page


def test_an_evaluation_that_has_only_begun_is_shown_as_far_as_it_is_known(tmp_path: Path) -> None:
    begun = summary() | {"before": {}, "change": {}, "teacher_scores": {}, "examples": []}
    text = " ".join(Outline(report(make_run(tmp_path, begun))).text.split())
    assert "88.0%" in text and "nan" not in text.lower()
    Console(file=io.StringIO()).print(table(begun))
    Console(file=io.StringIO()).print(table({}))


def test_an_empty_folder_has_a_report_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert page.count("is not there (yet)") == 3 and "No progress has been recorded yet" in page
    with pytest.raises(CheckpointError, match="name the folder"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"before": {"truth'), ("summary.json", "[]"),
        ("summary.json", '{"before": 3, "after": [1]}'),
        ("summary.json", '{"after": {"truth": {"mean": NaN, "low": null, "high": "x"}}}'),
        ("summary.json", '{"examples": [1, {}, {"after": 2}]}'),
        ("summary.json", '{"alpha": "much", "tokens": null, "seconds": Infinity, "name": 5, "examples": {"a": 1}}'),
        ("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("config.yaml", ""),
        ("progress.csv", ""), ("progress.csv", "\x00,\x00\n1"),
        ("progress.csv", "time/total_timesteps,train/entropy\n"),
        ("progress.csv", "time/total_timesteps,train/entropy\n100,1.5\n"),
        ("progress.csv", "time/total_timesteps,train/entropy\n100,1.5\n200"),
        ("progress.csv", "train/entropy\n1.5\nnan\ninf\n1.25\nbroken\n"),
    ],
)  # fmt: skip
def test_damaged_files_are_tolerated(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    assert "</html>" in report(run)


def test_nan_in_progress_leaves_no_trace_in_the_plots(run: Path) -> None:
    page = report(run)
    assert not any("nan" in plot for plot in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))


def test_the_same_input_gives_the_same_bytes_whatever_the_folder_and_the_style(tmp_path: Path) -> None:
    import matplotlib

    first = write_report(make_run(tmp_path / "a")).read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        second = write_report(make_run(tmp_path / "b")).read_bytes()
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.yaml", "progress.csv", "report.html", "summary.json",
    ]  # fmt: skip


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "progress.csv").write_text(progress(random.Random(2), updates=20_000))
    assert len(write_report(run).read_bytes()) < 1_500_000


# How it behaves in a browser


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """Opens a page and returns its document after the scripts ran, and what was written to the console."""

    def open_(page: Path, fragment: str = "", width: int = 1280) -> tuple[str, list[str]]:
        assert BROWSER is not None
        done = subprocess.run(
            [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
                "--virtual-time-budget=3000", "--dump-dom", f"{page.as_uri()}{fragment}",
            ],
            capture_output=True, check=True, timeout=200, encoding="utf-8", errors="replace",
        )  # fmt: skip
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_


def shown(document: str) -> dict[str, int]:
    """How many examples of each verdict are visible."""
    found: dict[str, int] = {}
    for tag, attributes in Outline(document).tags:
        if tag == "article" and "hidden" not in attributes:
            found[attributes["data-verdict"] or ""] = found.get(attributes["data-verdict"] or "", 0) + 1
    return found


@needs_browser
def test_the_filter_shows_what_it_names(run: Path, browse: Callable[..., tuple[str, list[str]]]) -> None:
    page, examples = write_report(run), summary()["examples"]
    truths = [[example[when]["quality"]["truth"] for when in ("before", "after")] for example in examples]
    expected = Counter("improved" if new > old else "worse" if new < old else "same" for old, new in truths)
    assert len(expected) == 3
    everything, console = browse(page)
    assert console == []
    assert shown(everything) == expected
    improved, console = browse(page, "#filter=improved")
    assert console == [] and shown(improved) == {"improved": expected["improved"]}
    assert f"{expected['improved']} of 20 examples" in improved
    word = max(examples[2]["reference"].split(), key=len)
    having = sum(word.lower() in json.dumps(example).lower() for example in examples)
    searched, console = browse(page, f"#q={word.upper()}%20summary")
    assert console == [] and 0 < having < 20 and sum(shown(searched).values()) == having


@needs_browser
def test_a_models_script_does_not_run(tmp_path: Path, browse: Callable[..., tuple[str, list[str]]]) -> None:
    told = summary()
    for example in told["examples"]:
        example["after"]["text"] = example["prompt"] = HOSTILE
    document, console = browse(write_report(make_run(tmp_path / "run", told)))
    assert console == [] and "<title>owned" not in document


@needs_browser
@pytest.mark.parametrize("long", [False, True])
def test_a_phone_need_not_scroll_sideways(
    tmp_path: Path, long: bool, browse: Callable[..., tuple[str, list[str]]]
) -> None:
    told = summary()
    if long:
        told |= {"name": "x" * 200, "student": "/models/" + "y" * 200, "agent": "z" * 100}
        told["examples"][0]["after"]["text"] = "w" * 500
        told["after"]["v" * 80] = told["before"]["v" * 80] = interval(0.5, 0.1)
    page = report(make_run(tmp_path / "run", told))
    frame = tmp_path / "frame.html"  # a window is at least 500 px wide; a frame is as narrow as it is told
    frame.write_text(
        f'<!doctype html><iframe style="width:390px;height:844px;border:0" srcdoc="{html.escape(page)}">'
        "</iframe><script>"
        "addEventListener('load', () => { const seen = document.querySelector('iframe').contentDocument;"
        "document.title = `${seen.documentElement.clientWidth} ${seen.documentElement.scrollWidth}` +"
        "[...seen.querySelectorAll('body *')].filter(e => !e.closest('svg, thead, .sr')"  # clipped, for screen readers
        "&& e.getBoundingClientRect().right > 390)"
        ".map(e => ` ${e.tagName}.${e.className}`).join('') })</script>",
        encoding="utf-8",
    )
    document, console = browse(frame)
    title = re.search("<title>(.*?)</title>", document)
    assert title is not None and title[1] in ("390 390", "375 375") and console == []
