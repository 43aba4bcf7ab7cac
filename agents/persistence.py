"""A saved agent: a Hugging Face folder with a file that has the agent's kind, its settings and its training state."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlgkd.agents.old_settings import upgraded
from rlgkd.agents.state import TrainingState
from rlgkd.checkpoint.files import temporary_name, writing
from rlgkd.errors import CheckpointError, SettingError
from rlgkd.file_kinds import check_file
from rlgkd.lm.loading import dtype_of
from rlgkd.lm.lora import has_adapters
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.saving import ADAPTER_FOLDER, check_not_base, remove_older_adapters, save
from rlgkd.settings import Settings, layered, marks
from rlgkd.teachers.names import is_self

SETTINGS_FILE = "rlgkd_agent.json"
TEACHER_FOLDER = "teacher"
"""Folder in it for a teacher that no name opens again, such as one that training has moved."""
OF_THE_START = ("student_layers",)
"""Settings that have done their work once a model is opened: what is saved is what they made of it."""
_log = logging.getLogger(__name__)


def agent_folder(path: str | Path) -> Path:
    """The folder of an agent of this path: SB3's callbacks append `.zip`, which is dropped."""
    return Path(str(path).removesuffix(".zip"))


def is_saved_teacher(name: str) -> bool:
    """Whether it is the teacher's folder of a saved agent."""
    return Path(name).name == TEACHER_FOLDER and (Path(name).parent / SETTINGS_FILE).exists()


def write_agent(
    path: str | Path,
    agent: str,
    student: LanguageModel,
    teacher: LanguageModel | None,
    settings: Mapping[str, Any],
    state: TrainingState,
    write_more: Callable[[Path], None],
) -> None:
    """Write the student, a teacher that no name opens, and what can be written of the settings as JSON.

    Models and schedules that were given as functions are left out. If the student came with an adapter, which is merged
    here, the file says so, and `save_adapter` is left out.
    """
    dtype = settings["saved_dtype"]
    kept = {name: value for name, value in settings.items() if not callable(value) and name not in OF_THE_START}
    merged = has_adapters(student.module) and not settings["lora_rank"]
    if merged:
        del kept["save_adapter"]  # the folder's model has none
    saved = {"agent": agent, "settings": kept, "state": state.to_json(), "adapter_merged": merged}
    text = json.dumps(saved, indent=2)
    if settings["save_adapter"]:
        check_not_base(student.module, agent_folder(path))
    with _replaced(agent_folder(path)) as folder:
        save(
            student.module,
            student.tokenizer,
            folder,
            end_ids=student.end_ids,
            dtype=None if dtype is None else dtype_of(dtype),
            adapters=settings["save_adapter"],
        )
        if teacher is not None:
            # With the student's tokenizer, in whose format it reads: its own may have another chat template.
            save(teacher.module, student.tokenizer, folder / TEACHER_FOLDER, end_ids=teacher.end_ids)
        write_more(folder)
        (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder whose content takes the place of `folder`'s once the block has ended well.

    What an older save left there stays whole if it did not; files of others stay.

    Raises: CheckpointError if it cannot be written.
    """
    new = temporary_name(folder, "tmp")
    with writing(folder, "free space, or save elsewhere"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(errno.EEXIST, "it is a file")
        shutil.rmtree(new, ignore_errors=True)
        try:
            yield new
            if folder.exists():
                remove_older_adapters(folder)
                _remove_older(folder, {path.name for path in new.iterdir()})
                for path in new.iterdir():
                    path.rename(folder / path.name)
            else:
                new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _remove_older(folder: Path, names: set[str]) -> None:
    """Delete folders that are replaced, a teacher, and weights that the new ones do not replace."""
    for path in [*folder.glob("model*.safetensors*"), folder / TEACHER_FOLDER, folder / ADAPTER_FOLDER]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in names:
            path.unlink(missing_ok=True)


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
        saved = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        name, settings = saved["agent"], dict(saved["settings"])
        if not isinstance(name, str) or not settings:
            raise ValueError("it names no agent with settings")
        state = TrainingState.from_json(saved["state"] if "state" in saved else saved["counters"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("path", str(folder), f"give a folder that save() wrote: {error}") from error
    if name != agent:
        raise CheckpointError("path", str(folder), f"it holds a {name}; use {name}.load")
    if "teacher" not in given:
        decay, was_self = settings.get("teacher_decay"), is_self(settings.get("teacher"))
        if decay not in (None, 0) or (folder / TEACHER_FOLDER).is_dir():
            settings["teacher"] = str(folder / TEACHER_FOLDER)
        elif was_self and decay is None:  # the start, not what training has made of it
            settings["teacher"] = settings["policy"]
    for mark in marks(config):
        chosen = settings.get(mark.kind)
        is_own = chosen is not None and (not isinstance(chosen, str) or ":" in chosen)
        if is_own and mark.kind not in given:  # a file runs no code
            raise SettingError(mark.kind, chosen, f"it is a function of your own; pass {mark.kind}=... to load")
    for field in ("teacher", "alpha", "student_fraction", "learning_rate"):
        if field not in settings and field not in given:
            raise SettingError(field, "unsaved", f"it was given as an object; pass {field}=... to load")
    if saved.get("adapter_merged") and "policy" not in given and not given.get("lora_rank"):
        remedy = "give lora_rank to train a new one on it"
        _log.warning("%s: the adapter that it began with is merged, and all weights are trained; %s", folder, remedy)
    return layered(config, {**upgraded(settings, agent), "policy": str(folder)}, given), state
