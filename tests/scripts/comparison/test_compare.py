"""A comparison end to end on the embedded models: the same numbers however it was run, and a report that works."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import assert_valid_and_self_contained, browse, needs_browser

from rlgkd.scripts.cli import main
from rlgkd.scripts.comparison.html import write_report

SMALL = (
    "tokens=300",
    "prompts_per_update=2",
    "group_size=2",
    "eval_prompts=4",
    "checkpoint_every=1",
    "learning_rate=0.001",
)
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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(out.glob("cells/*/*/checkpoints/step-2")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (out / "results.json").exists()
    assert compare(out, *GRID) == 0
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--vary", "alpha=0,2"], ["alpha: 2", "give a number in [0, 1]"]),
        (["--vary", "divergence=reverse_kl,jsd"], ["beta"]),
        (["--vary", "seed=0,1"], ["seed", "--seeds"]),
        (["--alphas", "0,1", "--vary", "alpha=0.5"], ["alpha", "each setting once"]),
        (["--seeds", "0"], ["seeds", "number of seeds"]),
        (["--seeds", "two"], ["seeds", "two"]),
        (["--seeds", "99999999999"], ["seeds", "at most 10,000"]),
        (["--seeds", "1,1"], ["seeds", "different"]),
        (["--baseline", "alpha=0.3"], ["baseline", "'alpha=0.5'"]),
        (["eval_prompts=1"], ["eval_prompts", "at least 2"]),
        (["alhpa=1"], ["alhpa", "'alpha'"]),
        (["stages=3", "alpha=1"], ["stages: 3", "give a list of stages"]),
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


# In a browser


@needs_browser
def test_the_report_renders_and_filters_cells_and_prompts(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished)
    assert_valid_and_self_contained(page.read_text())
    assert page.read_text().count("<svg") >= 15
    results = json.loads((finished / "results.json").read_text())
    word = results["references"]["start"]["texts"][1]["prompt"].split()[0]
    document, console = browse(page, tmp_path / "profile", f"#cells=1,2&q={word}")
    assert console == []
    shown = [tag for tag in re.findall(r"<article[^>]*>", document) if "hidden" not in tag]
    assert 1 <= len(shown) < 4
    writers = re.findall(r'<div data-writer="([^"]+)"[^>]*?( hidden="")?>', document)
    assert {name for name, hidden in writers if not hidden} == {"alpha=0", "alpha=1"}
    assert {name for name, hidden in writers if hidden} == {"start", "teacher"}
