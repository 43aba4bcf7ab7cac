"""Where the paths in settings lead: those of a YAML from its own folder, those of the command line from where one is.

What is found becomes absolute, so that a run's config.yaml runs again from anywhere; what is not found stays as it is
written, for a name is not always a path: a model may be a hub's, a reward's module an installed one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.lm.model_names import EMBEDDED, SMOLLM2
from rlgkd.settings import marks
from rlgkd.teachers.names import is_self

OF_PATHS = ("student", "teacher", "tokenizer", "teacher_texts", "data", "reward", "quality", "tools", "trackers")
"""Settings that hold paths, those of the environment among them."""
OF_METHODS = tuple(mark.kind for mark in marks(AlgorithmConfig))
"""Settings that name a function of the method, which may be the user's own."""
LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255."""


def folder_name(name: str) -> str:
    """Return a name as one part of a path: without separators or a leading dot, and short enough for any file system.

    Examples:
        >>> folder_name("../../a run"), folder_name("beta=0.5 student=x/y")
        ('-..-a-run', 'beta=0.5-student=x-y')
    """
    safe = re.sub(r"[^\w.=+-]+", "-", name).lstrip(".") or "-"
    if len(safe.encode()) <= LONGEST_NAME:
        return safe
    return (
        f"{safe.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


def settled(key: str, value: Any, folders: Sequence[Path]) -> Any:
    """The setting with its paths made absolute, each from the first of the folders that holds it.

    Paths are the models, `teacher_texts`, `teacher_map`, `sampler_folder`, `trackers`, and of the environment's
    settings `tokenizer`, `data`, `reward`, `quality`, `tools`, `reply`. The last five, `trackers` and OF_METHODS may be
    Python: `module:name`, where the module is a file of a folder, becomes `/folder/module.py:name`.
    """
    if key == "stages" and isinstance(value, list | tuple):
        return [settled(key, stage, folders) for stage in value]
    if key in ("stages", "env_settings") and isinstance(value, Mapping):
        return {name: settled(name, inner, folders) for name, inner in value.items()}
    if key in ("teacher", "reference_model") and is_self(value):
        return value
    if key == "teacher" and isinstance(value, Mapping):
        return {name: settled(key, one, folders) for name, one in value.items()}
    if key in ("student", "teacher", "reference_model", "tokenizer"):
        return _model(value, folders)
    if key in ("teacher_texts", "teacher_map", "sampler_folder") and isinstance(value, str):
        return _found(value, folders) or os.path.abspath(folders[0] / Path(value).expanduser())  # yet to be written
    if key == "data":
        return _data(value, folders)
    if key == "trackers" and isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if key in ("tools", "trackers") and isinstance(value, list):
        return [_code(tool, folders) if isinstance(tool, str) else tool for tool in value]
    if key == "reply" or key in OF_METHODS:
        return _code(value, folders) if isinstance(value, str) else value
    return _reward(value, folders) if key in ("reward", "quality") else value


def absolute_paths(value: Any, key: str = "") -> Iterator[str]:
    """Yield the absolute paths in a setting, or in all settings by name: files and folders, without `:name` of code.

    Of settings other than `OF_PATHS`, such as those of an environment of one's own, what there is on this machine.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from absolute_paths(inner, key if key in OF_PATHS else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from absolute_paths(inner, key)
    elif isinstance(value, str) and value.startswith("/"):
        path = re.sub(r"\.py:[\w.]+$", ".py", value)
        if len(Path(path).parts) > 1 and (key in OF_PATHS or os.path.exists(path)):
            yield path


def _model(value: Any, folders: Sequence[Path]) -> Any:
    if not isinstance(value, str) or not value or value.startswith(EMBEDDED) or value == SMOLLM2:
        return value
    return _found(value, folders) or value


def _data(value: Any, folders: Sequence[Path]) -> Any:
    if isinstance(value, Mapping):
        return {split: _data(part, folders) for split, part in value.items()}
    return _found(value, folders) or _code(value, folders) if isinstance(value, str) else value


def _reward(value: Any, folders: Sequence[Path]) -> Any:
    """A reward in any of the forms of rlgkd.envs.rewards.registry."""
    if isinstance(value, str):
        return _code(value, folders)
    if isinstance(value, list):
        return [_reward(part, folders) for part in value]
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        return {part: _reward(one, folders) for part, one in value.items()}
    of_its_own = {"model": _model(value["model"], folders)} if "model" in value else {}
    return {**value, "name": _reward(value["name"], folders), **of_its_own}


def _code(value: str, folders: Sequence[Path]) -> str:
    """`module:name` or `file.py:name` with the file's whole path, where there is one."""
    module, _, name = value.rpartition(":")
    if not module or module.startswith("rlgkd."):  # this package's own are modules, also in a checkout
        return value
    stem = module.removesuffix(".py") if module.endswith(".py") else module.replace(".", "/")
    file = _found(f"{stem}.py", folders) or _found(f"{stem}/__init__.py", folders)
    return f"{file}:{name}" if file else value


def _found(path: str, folders: Sequence[Path]) -> str:
    """The absolute path from the first folder that holds it; empty where none does."""
    places = [os.path.abspath(folder / Path(path).expanduser()) for folder in folders]
    return next((place for place in places if path and os.path.exists(place)), "")
