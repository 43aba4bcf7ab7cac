"""`rlgkd train --dry-run`: what a run would do and take, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlgkd.scripts import cli
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.dry_run import dry_run

SMALL = ("prompts_per_update=2", "group_size=2", "eval_prompts=4", "threads=1")


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return float(found[1].replace(",", ""))


def test_a_dry_run_says_settings_prompt_speed_times_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(dry_run(read("quickstart", [*SMALL, "alpha=0.3", "eval_every=500", "tokens=2000"])))
    assert "\nalpha: 0.3\n" in text and "\ngroup_size: 2\n" in text and "divergence:" not in text, "a default"
    assert "student: embedded:grounded-student, 0.155 million parameters, of which 0.155 million are trained" in text
    assert re.search(r"the first prompt as the model reads it: \d+ tokens\n .+\nSummary:\n", text)
    an_update = number(r"4 texts, about ([\d,]+) tokens", text)
    assert 4 <= an_update <= 4 * 32
    assert number(r"about ([\d,]+) updates", text) == pytest.approx(2000 / an_update, rel=0.1)
    assert number(r"; ([\d,]+) tokens a second", text) > 0 and "5 on the way" in text and "the teacher" in text
    assert 0.1 < number(r"memory: ([\d.]+) GiB", text) < 20
    assert [*tmp_path.iterdir()] == []


def test_a_run_of_one_update_has_a_dry_run_too() -> None:
    text = "\n".join(dry_run(read("quickstart", [*SMALL, "alpha=0", "teacher=null", "tokens=1"])))
    assert "teacher: none" in text and "about 1 updates" in text and text.endswith("nothing was written")


def test_a_dry_run_generates_no_file_of_a_teachers_texts(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    assert [*dry_run(read("seqkd", [*SMALL, "group_size=1", "tokens=100", f"teacher_texts={texts}"]))]
    assert not texts.exists()


def test_a_dry_run_of_a_run_that_goes_on_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(variable, "error")
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--dry-run", "--resume", "x"])
    assert left.value.code == 2 and "it is for a run that begins" in capsys.readouterr().err


def test_a_run_in_stages_is_timed_in_the_first_and_says_so() -> None:
    references = "{name: SFT, alpha: 1, divergence: forward_kl, estimator: sampled, student_fraction: 0, group_size: 1"
    stages = f"stages=[{references}, until: 0.5}}, {{alpha: 0}}]"
    text = "\n".join(dry_run(read("grpo", [*SMALL, "tokens=2000", stages])))
    assert "an update: 2 texts, about" in text and "if the stages after SFT take as long" in text
