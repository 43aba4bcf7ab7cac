"""The text environments among the registered ids."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import gymnasium as gym
import pytest

from rlgkd.envs.registry import takes_tokenizer, text_env_ids
from rlgkd.imports import import_object
from rlgkd.ops._registry import keywords

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
SECTIONS = ("Prompt", "Reward", "Episode end", "Splits")


@pytest.mark.parametrize(
    ("env", "takes"),
    [
        ("rlgkd/Dataset-v0", True),
        ("rlgkd/Arithmetic-v0", True),
        ("rlgkd/GroundedSummary-v0", False),
        ("CartPole-v1", False),
        ("nowhere/Nothing-v0", False),
    ],
)
def test_a_registered_environment_says_whether_it_takes_a_tokenizer(env: str, takes: bool) -> None:
    assert takes_tokenizer(env) is takes


@pytest.mark.parametrize("env", [name for name in text_env_ids() if name.startswith("rlgkd/")])
def test_an_environments_docstring_and_page_have_the_same_sections(env: str) -> None:
    maker = import_object("task", gym.registry[env].kwargs["task"])
    docstring = inspect.getdoc(maker) or ""
    section = PAGE.partition(f"\n### `{env}`\n")[2].partition("\n##")[0]
    in_docstring = [docstring.find(f"\n\n{name}:") for name in (*SECTIONS, "Args")]
    in_page = [section.find(f"\n- **{name}.**") for name in (*SECTIONS, "Arguments")]
    for positions in (in_docstring, in_page):
        assert -1 not in positions and positions == sorted(positions)
    for name in keywords(maker):
        assert re.search(rf"^    {name}: ", docstring, re.MULTILINE), name
        assert f"`{name}`" in section, name
