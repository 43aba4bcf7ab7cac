"""A comparison end to end on the embedded models: the same numbers however it was run, and a report that works."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlgkd.scripts.cli import main
from rlgkd.scripts.comparison.findings import answer, clearly_best
from rlgkd.scripts.comparison.html import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SMALL = (
    "tokens=300", "prompts_per_update=2", "group_size=2", "eval_prompts=4", "checkpoint_every=1", "learning_rate=0.001",
)  # fmt: skip
GRID = ("quickstart", "--alphas", "0,1", "--seeds", "2", "--samples", "2", "--jobs", "2", "--quiet", *SMALL)


def compare(out: Path, *arguments: str) -> int:
    """The exit code of `rlgkd compare`."""
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--out", str(out), *arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison that was never stopped."""
    out = tmp_path_factory.mktemp("comparison") / "whole"
    assert compare(out, *GRID) == 0
    return out


def test_a_comparison_leaves_every_number_of_every_run(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert [cell["name"] for cell in results["cells"]] == ["alpha=0", "alpha=1"] == results["baselines"]
    assert results["missing"] == [] and set(results["references"]) == {"teacher", "start"}
    for cell in results["cells"]:
        assert [run["seed"] for run in cell["runs"]] == [0, 1]
        for run in cell["runs"]:
            assert len(run["measures"]["truth"]) == len(results["prompts"]) == 4
            assert {"reward", "truth", "reverse_kl", "self_bleu", "truth@2"} <= run["measures"].keys()
            assert {"tokens", "reward", "divergence", "truth", "coverage"} <= run["training"].keys()
            assert len(run["training"]["truth"]) == run["updates"]
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["alpha"], row["seed"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert str(finished) not in (finished / "results.json").read_text()


def test_alpha_zero_is_measured_against_the_teacher_too_and_seeds_train_differently(finished: Path) -> None:
    pure, distilled = json.loads((finished / "results.json").read_text())["cells"]
    assert all(value > 0 for run in pure["runs"] for value in run["measures"]["reverse_kl"])
    first, second = distilled["runs"]
    assert first["measures"]["reverse_kl"] != second["measures"]["reverse_kl"]


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    files = sorted(finished.glob("*/*/*/measured.json")) + sorted(finished.glob("*/*/measured.json"))
    before = {file: file.stat().st_mtime_ns for file in files}
    results = (finished / "results.json").read_bytes()
    assert len(before) == 6
    assert compare(finished, *GRID) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (finished / "results.json").read_bytes() == results


def test_a_comparison_killed_in_the_middle_and_begun_again_ends_with_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "rlgkd.scripts", "compare", "--out", str(out), *GRID]
    for blow, wanted in ((signal.SIGINT, "step-1"), (signal.SIGKILL, "step-3")):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
        )  # fmt: skip
        deadline = time.monotonic() + 200
        while not list(out.glob(f"cells/*/*/checkpoints/{wanted}")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(blow)
        assert process.wait(60) == (130 if blow == signal.SIGINT else -signal.SIGKILL)
    assert not (out / "results.json").exists()
    assert compare(out, *GRID) == 0
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary = "teacher=embedded:grounded-student,/no/such/model"
    code = compare(tmp_path / "out", "quickstart", "--vary", vary, "--seeds", "1", "--samples", "1", "--quiet", *SMALL)
    assert code == 1
    assert "teacher=/no/such/model seed 0 failed: ModelError" in capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["missing"] == ["teacher=/no/such/model seed 0"]
    assert len(results["cells"][0]["runs"]) == 1 and results["teacher"] == "embedded:grounded-teacher"
    assert "One seed" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vary", "alhpa=0,1"], ["alhpa", "'alpha'"]),
        (["--vary", "alpha="], ["alpha", "at least one value"]),
        (["--vary", "alpha"], ["KEY=a,b,c"]),
        (["--vary", "alpha=0,0"], ["once"]),
        (["--vary", "alpha=0,2"], ["alpha", "less than or equal to 1"]),
        (["--vary", "divergence=reverse_kl,jsd"], ["beta"]),
        (["--vary", "seed=0,1"], ["seed", "--seeds"]),
        (["--alphas", "0,1", "--vary", "alpha=0.5"], ["alpha", "each setting once"]),
        (["--seeds", "0"], ["seeds", "number of seeds"]),
        (["--seeds", "two"], ["seeds", "two"]),
        (["--seeds", "1,1"], ["seeds", "different"]),
        (["--baseline", "alpha=0.3"], ["baseline", "'alpha=0.5'"]),
        (["eval_prompts=1"], ["eval_prompts", "at least 2"]),
        (["alhpa=1"], ["alhpa", "'alpha'"]),
        (["teacher="], ["teacher", "alpha"]),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path / "out", "quickstart", *arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_runs_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(finished, *GRID, "horizon=0.5") == 2
    assert "its horizon is 0.0, not 0.5; give another --out" in capsys.readouterr().err


# What it says


def cell(name: str, against: dict[str, object], **measures: float) -> dict[str, object]:
    """A cell whose two seeds have these values at each of four prompts, with little chance in them."""
    noise = (0.0, 0.01, -0.01, 0.005)
    runs = [
        {"seed": s, "measures": {m: [v + n + 0.002 * s for n in noise] for m, v in measures.items()}} for s in range(2)
    ]
    scores = {m: {"mean": v, "low": v - 0.01, "high": v + 0.01} for m, v in measures.items()}
    return {"name": name, "runs": runs, "scores": scores, "against": against}


def sentences(cells: list[dict[str, object]]) -> list[str]:
    """The answer, as a keyboard has it."""
    found = answer({"cells": cells, "baselines": ["alpha=0", "alpha=1"]})
    return [str(sentence).replace("\N{GREEK SMALL LETTER ALPHA}", "alpha") for sentence in found]


def test_the_answer_names_what_beats_both_ends_and_who_exploits_the_reward() -> None:
    fell = {"reward": {"change": {"mean": 0.3, "low": 0.2, "high": 0.4}}}
    fell["coverage"] = {"change": {"mean": -0.2, "low": -0.3, "high": -0.1}}
    cells = [
        cell("alpha=0", {"start": fell}, reward=0.95, truth=0.5, coverage=0.3, reverse_kl=2.0),
        cell("alpha=0.5", {}, reward=0.90, truth=0.9, coverage=0.8, reverse_kl=0.1),
        cell("alpha=1", {}, reward=0.60, truth=0.6, coverage=0.5, reverse_kl=0.2),
    ]
    told = sentences(cells)
    assert told[0].startswith("alpha = 0 exploits the reward") and "coverage" in told[0]
    assert told[1].startswith("alpha = 0.5 beats both alpha = 0 and alpha = 1 on both axes")
    assert "truth and coverage" in told[1] and "reward and truth" not in told[1]
    assert told[2].startswith("alpha = 0 earns more reward than others") and "against alpha = 0.5 truth" in told[2]
    assert any(line.startswith("Best reward: alpha = 0,") for line in told)
    assert any(line.startswith("Lowest Reverse KL: alpha = 0.5,") for line in told)


def test_the_answer_names_no_best_where_the_next_may_be_as_good() -> None:
    cells = [cell("alpha=0", {}, reward=0.5, reverse_kl=0.9)]
    cells += [cell(f"alpha={a}", {}, reward=0.8, reverse_kl=k) for a, k in ((0.5, 0.2), (1, 0.1))]
    told = sentences(cells)
    best, lowest = told[-2:]
    assert best.startswith("Best reward: none is clearly best. alpha = 0.5 has 0.800 (95% interval 0.790 to 0.810)")
    assert "not clearly better than alpha = 1 (0.800); clearly better than alpha = 0 by +0.300" in best
    assert lowest.startswith("Lowest Reverse KL: alpha = 1, 0.100 nats/token") and "none" not in lowest
    assert [clearly_best(cells, name) for name in ("reward", "reverse_kl", "length")] == ["", "alpha=1", ""]


def test_the_answer_says_so_where_nothing_beats_both_ends() -> None:
    cells = [cell(f"alpha={a}", {}, reward=a, truth=1 - a) for a in (0, 0.5, 1)]
    told = sentences(cells)
    assert told[0].startswith("No cell in between beats both ends")


# How it behaves in a browser


def browse(page: Path, profile: Path, fragment: str = "") -> tuple[str, list[str]]:
    """The document after the scripts ran, and what was written to the console."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr",
            "--virtual-time-budget=3000", "--dump-dom", f"{page.as_uri()}{fragment}",
        ],
        capture_output=True, check=True, timeout=250, encoding="utf-8", errors="replace",
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")
def test_the_report_renders_and_filters_cells_and_prompts(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished)
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org/", "") and "https://" not in text
    assert text.count("<svg") >= 15 and not re.search(r"<svg[^>]*>(?:(?!</svg>).)*\bnan\b", text, re.DOTALL)
    results = json.loads((finished / "results.json").read_text())
    word = results["references"]["start"]["texts"][1]["prompt"].split()[0]
    document, console = browse(page, tmp_path / "profile", f"#cells=1,2&q={word}")
    assert console == []
    shown = [a for a in re.findall(r"<article[^>]*>", document) if "hidden" not in a]
    assert 1 <= len(shown) < 4
    writers = re.findall(r'<div data-writer="([^"]+)"[^>]*?( hidden="")?>', document)
    assert {name for name, hidden in writers if not hidden} == {"alpha=0", "alpha=1"}
    assert {name for name, hidden in writers if hidden} == {"start", "teacher"}
