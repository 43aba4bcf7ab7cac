"""Builds a task from what a user names: a task, a function that makes one, its import path, or settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from rlgkd.envs.rewards.user_errors import callable_name
from rlgkd.envs.user_calls import call_user
from rlgkd.errors import SettingError
from rlgkd.imports import import_object
from rlgkd.ops._registry import UnknownSettingError, keywords, takes_any
from rlgkd.types import Task


def build_task(task: Task | Callable[..., Task] | str | None, default: Callable[..., Task], /, **settings: Any) -> Task:
    """Return a task: as given, from its maker, from the maker's import path, or from the `default` maker's settings.

    Raises: SettingError for a maker that raises, makes no task, or does not take a setting; what the task raises.
    """
    path = task if isinstance(task, str) else ""
    if isinstance(task, str):
        if ":" not in task:
            raise SettingError("task", task, "give package.module:function, or a registered id to gym.make")
        task = cast(Callable[..., Task], import_object("task", task))
    if callable(task):
        return _call_maker(task, path, settings)
    if task is not None:
        if settings:
            raise SettingError("task", sorted(settings), "a ready task takes no further settings")
        return task
    return default(**settings)


def _call_maker(maker: Callable[..., Task], path: str, settings: dict[str, Any]) -> Task:
    name = callable_name(maker)
    known = keywords(maker)
    unknown = [setting for setting in settings if setting not in known]
    if unknown and not takes_any(maker):
        raise UnknownSettingError(unknown[0], settings[unknown[0]], name, known)
    try:
        task = call_user("task", path or name, partial(maker, **settings))
    except UnknownSettingError as error:  # the maker passed it on to TextTask; a setting of its own may be meant
        raise UnknownSettingError(error.field, settings.get(error.field), name, known | error.known) from error
    if not isinstance(task, Task):
        raise SettingError("task", path or name, f"it returned {task!r:.60} and no task; return a TextTask")
    return task
