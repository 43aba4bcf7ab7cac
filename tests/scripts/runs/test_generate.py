"""`rlgkd generate`: a run's model is asked in the format of its training, and talked with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from chat_models import folder, model, tokenizer

from rlgkd.errors import DataError, SettingError
from rlgkd.scripts import cli
from rlgkd.scripts.runs.generate import complete, talk

FORMAT = {"chat": True, "system": "Be brief.", "stop": ["\n"], "max_new_tokens": 5}


@pytest.fixture
def name(tmp_path: Path) -> str:
    own = tokenizer()
    return folder(model(own), own, tmp_path / "m")


def run(tmp_path: Path, **env_settings: object) -> str:
    settings = {"env": "rlgkd/Dataset-v0", "student": "m", "teacher": None, "alpha": 0, "temperature": 0.7}
    shutil.copytree(tmp_path / "m", tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({**settings, "env_settings": env_settings}))
    return str(tmp_path / "run")


def test_a_run_is_asked_in_the_format_of_its_training(name: str, tmp_path: Path) -> None:
    expected = complete(name, ["Say hi {now}!"], temperature=0.7, **FORMAT)
    said: list[str] = []
    trained = run(tmp_path, data="d.jsonl", prompt="Say {text}!", **FORMAT)
    assert complete(trained, ["hi {now}"], say=said.append) == expected
    assert said == [
        "as in training: chat True, stop ['\\n'], prompt 'Say {text}!', max_new_tokens 5, system 'Be brief.'"
    ]
    assert complete(f"{trained}/model", ['{"text": "hi {now}", "more": 1}']) == expected
    assert complete(trained, ["Say hi {now}!"], raw=True, temperature=0.7, **FORMAT) == expected


def test_what_is_given_stands_over_the_runs_own(name: str, tmp_path: Path) -> None:
    trained = run(tmp_path, prompt="text", **FORMAT)
    for given in (
        {"system": "Be long."},
        {"stop": ["e"]},
        {"max_new_tokens": 9},
        {"chat": False},
        {"temperature": 2.0},
    ):
        wanted = {**FORMAT, "temperature": 0.7, **given}
        if not wanted["chat"]:
            del wanted["system"]
        assert complete(trained, ["hi"], seed=3, **given) == complete(name, ["hi"], seed=3, **wanted), given


def test_a_template_of_several_columns_takes_a_row(name: str, tmp_path: Path) -> None:
    trained = run(tmp_path, prompt="{a}: {b.c}", max_new_tokens=4)
    assert complete(trained, ['{"a": "x", "b": {"c": "y"}}']) == complete(
        name, ["x: y"], temperature=0.7, max_new_tokens=4
    )
    with pytest.raises(DataError, match=r"give a row such as '\{\"a\": \"...\", \"b.c\": \"...\"\}', or --raw"):
        complete(trained, ["x"])


def test_a_conversation_goes_on_and_drops_its_oldest_turns_when_the_context_is_full(name: str) -> None:
    lines = iter(["hi", " ", "again", *["x" * 60] * 3])
    answers: list[str] = []
    said: list[str] = []
    talk(name, lambda: next(lines, None), answers.append, greedy=True, max_new_tokens=5, say=said.append)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answers[0]}]
    asked: list = [[*turns, {"role": "user", "content": "again"}]]
    assert answers[:2] == [
        *complete(name, ["hi"], chat=True, greedy=True, max_new_tokens=5),
        *complete(name, asked, chat=True, greedy=True, max_new_tokens=5),
    ]
    assert len(answers) == 5 and "the oldest turn is left out: the model's context is full" in said


def test_the_command_line_talks_line_by_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed = tmp_path / "typed"
    typed.write_text("hi\nagain\n")
    for variable in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(variable, "error")
    with typed.open() as lines, pytest.raises(SystemExit) as left:
        monkeypatch.setattr("sys.stdin", lines)
        cli.main(["generate", name, "--chat", "--greedy", "--max-new-tokens", "3"])
    assert left.value.code == 0 and len(capsys.readouterr().out.rstrip("\n").split("\n")) >= 2
    with pytest.raises(SystemExit) as left:
        cli.main(["generate", name])
    assert left.value.code == 2 and "or --chat to talk with the model" in capsys.readouterr().err


def test_a_model_without_a_chat_template_cannot_be_talked_with(tmp_path: Path) -> None:
    own = tokenizer(template=None)
    with pytest.raises(SettingError, match="chat"):
        talk(folder(model(own), own, tmp_path / "m"), lambda: "hi", print)
