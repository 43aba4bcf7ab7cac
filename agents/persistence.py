"""The file beside a saved agent's model: which agent it is, its settings, and how far training had come."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rlgkd.agents.state import TrainingState
from rlgkd.errors import CheckpointError, SettingError

SETTINGS_FILE = "rlgkd_agent.json"
TEACHER_FOLDER = "teacher"
"""Folder in it for a teacher that training has moved."""
OF_THE_START = ("student_layers",)
"""Settings that have done their work once a model is opened: what is saved is what they made of it."""


def agent_folder(path: str | Path) -> Path:
    """The folder of an agent of this path: SB3's callbacks append `.zip`, which is dropped."""
    return Path(str(path).removesuffix(".zip"))


def write_agent(folder: Path, agent: str, settings: Mapping[str, Any], state: TrainingState) -> None:
    """Write what can be written as JSON: models and schedules that were given as functions are left out."""
    kept = {
        name: value for name, value in settings.items() if not callable(value) and name not in OF_THE_START
    }  # models are callable too
    text = json.dumps({"agent": agent, "settings": kept, "state": state.to_json()}, indent=2)
    (folder / SETTINGS_FILE).write_text(text + "\n")


def read_agent(folder: Path, agent: str, *, given: Collection[str]) -> tuple[dict[str, Any], TrainingState]:
    """Settings and state of a saved `agent`; `given` names the settings that will be overridden.

    Raises: CheckpointError if the folder is not such an agent's; SettingError for a setting that could not be saved and
    is not given.
    """
    try:
        saved = json.loads((folder / SETTINGS_FILE).read_text())
        name, settings = saved["agent"], saved["settings"]
        state = TrainingState.from_json(saved["state"] if "state" in saved else saved["counters"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError("path", str(folder), f"give a folder that save() wrote: {error}") from error
    if name != agent:
        raise CheckpointError("path", str(folder), f"it holds a {name}; use {name}.load")
    if settings.get("teacher_decay") is not None and "teacher" not in given:
        settings["teacher"] = str(folder / TEACHER_FOLDER)
    for field in ("teacher", "alpha", "student_fraction", "learning_rate"):
        if field not in settings and field not in given:
            raise SettingError(field, "unsaved", f"it was given as an object; pass {field}=... to load")
    return settings, state
