"""The lists of settings are those of the code, each with a sentence; the page and the README say the same."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest
import tiny

from rlgkd.scripts import cli
from rlgkd.scripts.config import docs
from rlgkd.scripts.listing import KINDS, show

ROOT = Path(__file__).parents[2]


def test_docs_settings_is_what_the_code_says() -> None:
    assert (ROOT / docs.PAGE).read_text() == docs.page(), "run: python scripts/config/docs.py"


def test_every_setting_has_a_sentence_and_a_default() -> None:
    for setting in (*docs.run_settings(), *docs.environment_settings()):
        assert setting.default and len(setting.about.split()) > 1, setting


def test_a_default_that_is_the_agents_own_is_told_for_each() -> None:
    own = {setting.name: setting.default for setting in docs.run_settings()}
    assert own["alpha"] == "0.5; Distill 1.0"
    assert own["advantage"] == "leave_one_out; GRPO group_normalised, PPO raw"
    assert own["ratio"] == "token"


def test_the_settings_are_listed_with_their_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show("settings")
    listed = capsys.readouterr().out
    assert "reward_timeout" in listed and "None waits for ever" in listed and "0.5; Distill 1.0" in listed


def test_environments_are_listed_by_a_sentence_and_a_broken_one_harms_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    gym.register(id="gone/Gone-v0", entry_point="rlgkd.envs.text_env:TextGenerationEnv", kwargs={"task": "gone:task"})
    made = {"task": tiny.WordTask(tiny.word_tokenizer("a"), len)}
    gym.register(id="made/Made-v0", entry_point="rlgkd.envs.text_env:TextGenerationEnv", kwargs=made)
    try:
        show("envs")
    finally:
        del gym.registry["gone/Gone-v0"], gym.registry["made/Made-v0"]
    listed = capsys.readouterr().out
    assert "A game of several turns: guess a number" in listed and "rlgkd.envs.tasks.guess:guess" not in listed
    assert "it could not be imported: No module named 'gone'" in listed
    assert "made/Made-v0" in listed


def test_the_readme_names_every_command_and_every_list() -> None:
    text = (ROOT / "README.md").read_text()
    for command in cli.app.registered_commands:
        assert command.callback is not None
        assert f"    rlgkd {command.name or command.callback.__name__}" in text
    assert f"rlgkd list [{'|'.join(KINDS)}]" in text
