"""Recipes and YAML files of settings as plain values; what they mean is in run.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from rlgkd.agents.old_settings import upgraded
from rlgkd.errors import SettingError, one_line, unknown_remedy
from rlgkd.file_kinds import check_file
from rlgkd.scripts._yaml import load_yaml
from rlgkd.scripts.config.paths import settled

RECIPES = Path(__file__).parents[1] / "recipes"
METHOD = (
    "agent",
    "alpha",
    "divergence",
    "student_fraction",
    "estimator",
    "horizon",
    "advantage",
    "policy_loss",
    "gate",
    "gap",
)
"""Settings that say where a recipe stands in the space of methods."""


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def values_of(source: str | Path, default_agent: str) -> tuple[dict[str, Any], bool]:
    """A file's values with its paths settled, and whether it is a recipe's.

    Args:
        source: A recipe's name or a YAML file.
        default_agent: The agent where it names none.

    Raises: SettingError for an unknown recipe, or a missing or malformed file.
    """
    path = Path(source)
    is_recipe = path.suffix not in (".yaml", ".yml")
    if is_recipe:
        path = RECIPES / f"{source}.yaml"
        if not os.path.isfile(path):
            remedy = f"{unknown_remedy(str(source), recipe_names())}, or a .yaml file"
            raise SettingError("recipe", str(source), remedy)
    try:
        check_file(path)
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError("settings", str(source), f"it could not be read: {one_line(error, 200)}") from error
    if not isinstance(values, dict):
        raise SettingError("settings", str(source), "write `key: value` lines")
    for key in values:
        if not isinstance(key, str):
            raise SettingError("setting", key, f"a setting's name is a text; see {source}")
    values = {key: settled(key, value, [path.parent, Path()]) for key, value in values.items()}
    return upgraded(values, values.get("agent") or default_agent), is_recipe
