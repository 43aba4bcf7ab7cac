"""The text environments among the ids that are registered with Gymnasium, and what is registered with them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from rlgkd.imports import import_object
from rlgkd.ops._registry import takes_any

ENTRY_POINT = "rlgkd.envs.text_env:TextGenerationEnv"
"""The entry point of a text environment."""


def text_env_ids() -> list[str]:
    """Return the ids whose environments are `TextGenerationEnv`, from whatever package they come."""
    return sorted(name for name, spec in gym.registry.items() if spec.entry_point == ENTRY_POINT)


def registered_settings(env: str) -> dict[str, Any] | None:
    """Return a copy of the settings registered with a text environment's id; None for any other id."""
    spec = gym.registry.get(env)
    if spec is None or spec.entry_point != ENTRY_POINT:
        return None
    return copy.deepcopy(spec.kwargs)  # as gym.make does, so that no environment changes what is registered


def takes_tokenizer(env: str) -> bool:
    """Whether the text environment of this id leaves the choice of its tokenizer to its user.

    Raises: SettingError if its task cannot be imported.
    """
    return _leaves_open(env, "tokenizer", lambda maker: "tokenizer" in inspect.signature(maker).parameters)


def takes_setting(env: str, setting: str) -> bool:
    """Whether the text environment of this id takes a setting of `TextTask`, by its name or among any others.

    Raises: SettingError if its task cannot be imported.
    """
    return _leaves_open(env, setting, lambda maker: takes_any(maker) or setting in inspect.signature(maker).parameters)


def _leaves_open(env: str, setting: str, takes: Callable[[Callable[..., Any]], bool]) -> bool:
    """Whether the registration leaves a setting to the user, and `takes` says so of the task's maker, if it has one."""
    spec = gym.registry.get(env)
    if spec is None or spec.entry_point != ENTRY_POINT or setting in spec.kwargs:
        return False
    task = spec.kwargs.get("task")
    if isinstance(task, str):
        task = import_object("task", task)
    return task is None or (callable(task) and takes(task))
