"""A saved agent: a Hugging Face folder with a file that has the agent's kind, its settings and its training state."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlgkd.agents.old_settings import upgraded
from rlgkd.agents.state import TrainingState
from rlgkd.errors import CheckpointError, SettingError
from rlgkd.file_kinds import check_file
from rlgkd.lm.loading import dtype_of
from rlgkd.lm.lora import has_adapters
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.saving import save
from rlgkd.settings import Settings, layered

SETTINGS_FILE = "rlgkd_agent.json"
TEACHER_FOLDER = "teacher"
"""Folder in it for a teacher that training has moved."""
OF_THE_START = ("student_layers",)
"""Settings that have done their work once a model is opened: what is saved is what they made of it."""
_log = logging.getLogger(__name__)


def agent_folder(path: str | Path) -> Path:
    """The folder of an agent of this path: SB3's callbacks append `.zip`, which is dropped."""
    return Path(str(path).removesuffix(".zip"))


def write_agent(
    path: str | Path,
    agent: str,
    student: LanguageModel,
    teacher: LanguageModel | None,
    settings: Mapping[str, Any],
    state: TrainingState,
) -> None:
    """Write the student, a teacher that training has moved, and what can be written of the settings as JSON.

    Models and schedules that were given as functions are left out. If the student came with an adapter, which is merged
    here, the file says so, and `save_adapter` is left out.
    """
    folder = agent_folder(path)
    dtype = settings["saved_dtype"]
    save(
        student.module,
        student.tokenizer,
        folder,
        end_ids=student.end_ids,
        dtype=None if dtype is None else dtype_of(dtype),
        adapters=settings["save_adapter"],
    )
    shutil.rmtree(folder / TEACHER_FOLDER, ignore_errors=True)
    if teacher is not None:
        # With the student's tokenizer, in whose format it reads: its own may have another chat template.
        save(teacher.module, student.tokenizer, folder / TEACHER_FOLDER, end_ids=teacher.end_ids)
    kept = {name: value for name, value in settings.items() if not callable(value) and name not in OF_THE_START}
    merged = has_adapters(student.module) and not settings["lora_rank"]
    if merged:
        del kept["save_adapter"]  # the folder's model has none
    saved = {"agent": agent, "settings": kept, "state": state.to_json(), "adapter_merged": merged}
    text = json.dumps(saved, indent=2)
    (folder / SETTINGS_FILE).write_text(text + "\n")


def read_agent(
    path: str | Path, agent: str, config: type[Settings], given: Mapping[str, Any]
) -> tuple[dict[str, Any], TrainingState]:
    """The constructor's arguments of a saved `agent`, with those given on top, and its state.

    Raises: CheckpointError if the folder is not such an agent's; SettingError for a setting that could not be saved and
    is not given.
    """
    folder = agent_folder(path)
    try:
        check_file(folder / SETTINGS_FILE)
        saved = json.loads((folder / SETTINGS_FILE).read_text())
        name, settings = saved["agent"], dict(saved["settings"])
        state = TrainingState.from_json(saved["state"] if "state" in saved else saved["counters"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("path", str(folder), f"give a folder that save() wrote: {error}") from error
    if name != agent:
        raise CheckpointError("path", str(folder), f"it holds a {name}; use {name}.load")
    if settings.get("teacher_decay") is not None and "teacher" not in given:
        settings["teacher"] = str(folder / TEACHER_FOLDER)
    for field in ("teacher", "alpha", "student_fraction", "learning_rate"):
        if field not in settings and field not in given:
            raise SettingError(field, "unsaved", f"it was given as an object; pass {field}=... to load")
    if saved.get("adapter_merged") and "policy" not in given and not given.get("lora_rank"):
        remedy = "give lora_rank to train a new one on it"
        _log.warning("%s: the adapter that it began with is merged, and all weights are trained; %s", folder, remedy)
    return layered(config, {**upgraded(settings, agent), "policy": str(folder)}, given), state
