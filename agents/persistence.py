"""The file beside a saved agent's model: which agent it is, its settings, and how far training had come."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rlgkd.errors import CheckpointError, SettingError

SETTINGS_FILE = "rlgkd_agent.json"
TEACHER = "teacher"
"""Folder in it for a teacher that training has moved."""


def agent_folder(path: str | Path) -> Path:
    """Where an agent of this path lies: SB3's callbacks add `.zip` to it, which is dropped."""
    return Path(str(path).removesuffix(".zip"))


def write_settings(folder: Path, agent: str, settings: Mapping[str, Any], counters: Mapping[str, Any]) -> None:
    """Write what can be written as JSON: models and schedules given as objects are left out."""
    plain = {name: value for name, value in settings.items() if not callable(value)}  # models are callable too
    text = json.dumps({"agent": agent, "settings": plain, "counters": counters}, indent=2)
    (folder / SETTINGS_FILE).write_text(text + "\n")


def read_settings(folder: Path, agent: str, *, given: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and counters of a saved `agent`; `given` names those that will be overridden.

    Raises: CheckpointError if the folder is not such an agent's; SettingError for what was left out and is not given.
    """
    try:
        saved = json.loads((folder / SETTINGS_FILE).read_text())
        name, settings, counters = saved["agent"], saved["settings"], saved["counters"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError("path", str(folder), f"give a folder that save() wrote: {error}") from error
    if name != agent:
        raise CheckpointError("path", str(folder), f"it holds a {name}; use {name}.load")
    there = {*settings, *given, *([TEACHER] if settings.get("teacher_decay") is not None else [])}
    for field in ("teacher", "alpha", "student_fraction", "learning_rate"):
        if field not in there:
            raise SettingError(field, "unsaved", f"it was given as an object; pass {field}=... to load")
    return settings, counters
