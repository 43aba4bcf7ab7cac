"""`rlgkd check` finds what is wrong with an environment: each fault in one that is made to have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlgkd.scripts import cli
from rlgkd.scripts.config.reading import check, read
from rlgkd.scripts.env_check import Outcome, check_environment
from rlgkd.scripts.project import write_project
from rlgkd.scripts.runs import train

RIGHT = "return [float(c == r) for c, r in zip(completions, references)]"
FAULTS = {
    "random": (
        "import random; return [random.random() for _ in completions]",
        "repeated",
    ),
    "by its place": ("return [(c == r) + 1e-2 * n for n, (c, r) in enumerate(zip(completions, references))]", "order"),
    "by the batch": ("return [float(c == r) / len(completions) for c, r in zip(completions, references)]", "alone"),
    "by brevity": ("return [-len(c) for c in completions]", "wrong answers"),
    "constant": ("return [1.0 for c in completions]", "wrong answers"),
    "raises": ("raise KeyError('no')", "reward"),
}


def rows(start: int, number: int = 6) -> str:
    lines = [{"prompt": f"{n} and {n + 1}?", "reference": f"{2 * n + 1} it is"} for n in range(start, start + number)]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(rows(0))
    (tmp_path / "test.jsonl").write_text(rows(10))
    write_reward(tmp_path, RIGHT)
    return tmp_path


def write_reward(project: Path, body: str) -> None:
    (project / "reward.py").write_text(f"def reward(completions, references):\n    {body}\n")
    (project / "run.yaml").write_text(
        "env: rlgkd/Dataset-v0\nstudent: embedded:grounded-student\nteacher: null\nalpha: 0\nenv_settings:\n"
        "  data: {train: train.jsonl, test: test.jsonl}\n  reward: reward.py:reward\n"
        "  max_new_tokens: 16\n  max_prompt_tokens: 64\n"
    )


def outcomes(project: Path, *overrides: str) -> list[Outcome]:
    return [*check_environment(read(project / "run.yaml", overrides), 6)]


def failed(found: list[Outcome]) -> set[str]:
    return {outcome.what for outcome in found if outcome.mark == "FAIL"}


def test_a_good_environment_passes_and_shows_the_prompt_as_the_model_reads_it(project: Path) -> None:
    found = outcomes(project)
    assert failed(found) == set() and {"Gymnasium's checker", "Stable-Baselines3's checker"} <= {o.what for o in found}
    assert " and 1" in found[-1].text and found[-1].text.partition(" ")[2].startswith("tokens\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_reward_is_found(project: Path, fault: str) -> None:
    body, where = FAULTS[fault]
    write_reward(project, body)
    names = failed(outcomes(project))
    assert any(where in name for name in names), names
    if fault in ("by the batch", "constant", "by brevity"):
        assert len(names) == 1, names


def test_prompts_in_two_splits_and_references_that_do_not_fit_are_found(project: Path) -> None:
    (project / "test.jsonl").write_text(rows(5))
    found = {o.what: o.text for o in outcomes(project, "env_settings.max_new_tokens=2") if o.mark == "FAIL"}
    assert "1 prompts are in train and in test, such as '5 and 6?'" in found["splits"]
    assert "6 of 6 do not fit; raise max_new_tokens" in found["references"]


def test_few_prompts_of_the_evaluation_are_said(project: Path) -> None:
    said = [outcome.text for outcome in outcomes(project) if outcome.mark == "note" and outcome.what == "splits"]
    assert len(said) == 1 and said[0].startswith("the evaluation has 6 test prompts: ")


def test_embedded_environments_pass() -> None:
    for env in ("rlgkd/GroundedSummary-v0", "rlgkd/Arithmetic-v0", "rlgkd/Translate-v0"):
        assert failed([*check_environment(check({"env": env}), 8)]) == set(), env


def test_the_command_line_exits_with_one_after_a_failure(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(variable, "error")
    write_reward(project, FAULTS["constant"][0])
    with pytest.raises(SystemExit) as left:
        cli.main(["check", str(project / "run.yaml"), "--prompts", "2"])
    assert left.value.code == 1
    assert "FAIL  wrong answers: an empty text earns 1.000 on average" in capsys.readouterr().out


def test_a_project_passes_its_check_and_trains(tmp_path: Path) -> None:
    paths = write_project(tmp_path / "mine")
    assert {path.name for path in paths} == {"README.md", "run.yaml", "reward.py", "train.jsonl", "test.jsonl"}
    settings = read(tmp_path / "mine" / "run.yaml", ["tokens=200", "eval_prompts=2", "prompts_per_update=2"])
    assert failed([*check_environment(settings, 8)]) == set()
    assert train.start(settings, tmp_path / "run", quiet=True) == tmp_path / "run" / "report.html"


def test_a_project_is_not_written_over_another(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("mine")
    with pytest.raises(Exception, match=r"reward\.py is there already"):
        write_project(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["reward.py"]
