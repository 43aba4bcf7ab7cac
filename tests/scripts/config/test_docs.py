"""The lists of settings are those of the code, each with a sentence; the page and the README say the same."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

import gymnasium as gym
import pytest
import tiny

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.objective import Objective
from rlgkd.ops.schedule import Schedule
from rlgkd.scripts import cli
from rlgkd.scripts.config import catalogue, docs
from rlgkd.scripts.config.reading import check
from rlgkd.scripts.config.run import AgentName, RunConfig, agent_class, config_of, setting_names
from rlgkd.scripts.listing import KINDS, show
from rlgkd.settings import Settings, arguments_of

ROOT = Path(__file__).parents[3]


def test_docs_settings_is_what_the_code_says() -> None:
    assert (ROOT / docs.PAGE).read_text() == docs.page(), "run: python -m rlgkd.scripts.config.docs"


def test_the_catalogue_is_what_the_code_says() -> None:
    """`rlgkd list` reads it, since importing what it lists takes seconds."""
    assert (ROOT / docs.CATALOGUE).read_text() == docs.catalogue(), "run: python -m rlgkd.scripts.config.docs"
    assert catalogue.everything().keys() == KINDS.keys()


def test_every_setting_has_a_sentence_and_a_default() -> None:
    for setting in (*catalogue.run_settings(), *catalogue.environment_settings()):
        assert setting.default and len(setting.about.split()) > 1, setting


def test_a_default_that_is_the_agents_own_is_told_for_each() -> None:
    own = {setting.name: setting.default for setting in catalogue.run_settings()}
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


def test_the_page_of_signatures_is_what_the_code_says() -> None:
    assert (ROOT / docs.SIGNATURE).read_text() == docs.signature(), "run: python -m rlgkd.scripts.config.docs"


@pytest.mark.parametrize("name", get_args(AgentName))
def test_signature_docstring_files_and_command_line_say_the_same_of_every_setting(name: str) -> None:
    """A default is written once: what the constructor shows, what a run resolves and what is documented follow."""
    config = config_of(name)
    signature = inspect.signature(agent_class(name)).parameters
    own = {key: p for key, p in signature.items() if p.kind is p.KEYWORD_ONLY and key in config.declared()}
    assert {*own} == {*config.declared()} - config.fixed_names()
    resolved = config().flat()
    assert all(p.default == resolved.get(key) for key, p in own.items())
    described = arguments_of(agent_class(name).__doc__ or "")
    assert all(
        described[key] == " ".join(setting.sentence.split()) for key, setting in config.declared().items() if key in own
    )
    run = check({"agent": name, "teacher": "x"}).flat()
    assert all(run[key] == value for key, value in resolved.items() if key != "learning_rate")
    listed = {setting.name: setting for setting in catalogue.run_settings()}
    assert listed.keys() >= config.declared().keys() and set(listed) == set(setting_names())


def test_no_default_of_a_setting_is_written_in_two_places() -> None:
    """A name is declared by one class; an agent that changes a default says so in its own config alone."""
    owners: dict[str, list[str]] = {}
    for cls in (
        Objective,
        *(info.annotation for info in AlgorithmConfig.model_fields.values()),
        AlgorithmConfig,
        RunConfig,
    ):
        if isinstance(cls, type) and issubclass(cls, Settings):
            for name in cls.model_fields:
                owners.setdefault(name, []).append(cls.__name__)
    shared = {name: classes for name, classes in owners.items() if len({*classes}) > 1}
    assert shared.keys() <= {"alpha", "student_fraction", "teacher"}, (
        "alpha and lambda as schedules, the group `teacher`"
    )
    for name in ("alpha", "student_fraction"):  # the schedule takes its default from Objective
        assert AlgorithmConfig.model_fields[name].default == Schedule(Objective.model_fields[name].default)
