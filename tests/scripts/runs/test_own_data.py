"""One's own file and one's own reward by the command line: trained, run again from elsewhere, and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rlgkd.errors import ModelError
from rlgkd.scripts.cli import main
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.train import build_agent

SETTINGS = {
    "name": "mine",
    "env": "rlgkd/Dataset-v0",
    "student": "embedded:arithmetic-student",
    "teacher": None,
    "alpha": 0.0,
    "tokens": 60,
    "prompts_per_update": 2,
    "group_size": 2,
    "eval_prompts": 3,
    "threads": 1,
    "temperature": 0.5,
    "env_settings": {
        "data": "rows.csv",
        "reward": "own_reward:long",
        "split_shares": None,
        "max_prompt_tokens": 32,
        "max_new_tokens": 4,
    },
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings, data and a reward, and the run of them, trained from another folder."""
    folder, elsewhere = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("elsewhere")
    (folder / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "rows.csv").write_text("prompt,reference\n One plus one?,2\n Two plus two?,4\n Three plus two?,5\n")
    (folder / "own_reward.py").write_text("def long(completion): return float(len(completion))\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        rlgkd("train", str(folder / "mine.yaml"), "--out", str(folder / "run"), "--quiet")
    return folder


def rlgkd(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


def test_the_config_holds_whole_paths_and_runs_again_from_anywhere(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((mine / "run" / "config.yaml").read_text())
    assert config["env_settings"]["data"] == str(mine / "rows.csv")
    assert config["env_settings"]["reward"] == f"{mine}/own_reward.py:long"
    monkeypatch.chdir(tmp_path)
    rlgkd("train", str(mine / "run" / "config.yaml"), "--out", "again", "--quiet")
    for name in ("config.yaml", "rollouts.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (mine / "run" / name).read_bytes()


def test_the_environment_has_the_students_tokenizer_unless_another_is_named(mine: Path) -> None:
    agent = build_agent(read(mine / "mine.yaml"))
    assert agent.task.tokenizer.get_vocab() == agent.student.tokenizer.get_vocab()
    assert agent.teacher is None
    with pytest.raises(ModelError, match=r"student: 'embedded:arithmetic-student'.* the environment's"):
        build_agent(read(mine / "mine.yaml", ["env_settings.tokenizer=embedded:grounded-student"]))


def test_a_run_is_evaluated_on_its_own_environment_which_is_named(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mine)
    rlgkd("evaluate", "run", "--prompts", "3")
    printed = capsys.readouterr().out
    assert printed.startswith(f"run on 3 test prompts of rlgkd/Dataset-v0 ({mine}/rows.csv)")
    after = json.loads((mine / "run" / "summary.json").read_text())["after"]
    assert after["reward"]["mean"] > 1  # the length, by the reward of one's own
    for measure in ("reward", "entropy", "length"):  # at the run's own temperature
        assert any(measure in line and f"{after[measure]['mean']:.4f}" in line for line in printed.splitlines())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["env_settings.max_new_tokens=1"], ["rlgkd/Dataset-v0", "length  │ 1.0000"]),
        (["env_settings.data=others.csv"], ["2 test prompts of rlgkd/Dataset-v0"]),
        (["--env", "rlgkd/Arithmetic-v0"], ["3 test prompts of rlgkd/Arithmetic-v0", "steps"]),
        (["env=rlgkd/Arithmetic-v0", "env_settings.steps=1"], ["3 test prompts of rlgkd/Arithmetic-v0", "steps"]),
        (["--env", "rlgkd/Dataset-v0", "env_settings.max_new_tokens=2"], ["rows.csv"]),
    ],
)
def test_the_environment_and_its_settings_can_be_others(
    mine: Path,
    given: list[str],
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others.csv").write_text("prompt\n Five?\n Six?\n")
    rlgkd("evaluate", str(mine / "run"), *given, "--prompts", "3")
    printed = capsys.readouterr().out
    assert all(words in printed for words in expected), printed


def test_a_reward_may_change_the_folder_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose --out is relative went on into another folder, or lost its files."""
    (tmp_path / "elsewhere.py").write_text(
        "import os\ndef reward(completions):\n    os.chdir('/')\n    return [1.0 * len(text) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    few = ["tokens=20", "eval_prompts=2", "prompts_per_update=2", "group_size=2", "agent=Reinforce", "alpha=0"]
    data = "env_settings={data: [' a', ' b'], reward: 'elsewhere.py:reward', max_new_tokens: 4, max_prompt_tokens: 8}"
    student = ["env=rlgkd/Dataset-v0", "student=embedded:grounded-student", "teacher=null"]
    with pytest.raises(SystemExit) as end:
        main(["train", "quickstart", "--out", "x", "--quiet", *student, data, *few])
    assert end.value.code == 0
    assert {"model", "report.html", "summary.json"} <= {path.name for path in (tmp_path / "x").iterdir()}
