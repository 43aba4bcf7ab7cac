"""What settings name instead of holding: objects by import path, rewards by name, what other packages bring along.

A reward is given as
- a function;
- a name: one of rlgkd.envs.rewards, or of another package's entry point in the group `rlgkd.rewards`. It stands for
  what makes the reward, and is called with the settings beside it: `{"name": "rouge", "kind": "rougeL"}`;
- an import path of the reward itself, `package.module:function` or `folder/file.py:function`; settings beside it become
  arguments of each call;
- a list of these, or a mapping {part: one of these}: their sum, each times its `weight` (1 where none is given).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from rlgkd.envs import rewards
from rlgkd.envs.rewards.grader import Reward
from rlgkd.errors import SettingError
from rlgkd.imports import import_object, is_import_path
from rlgkd.ops._registry import unknown_remedy

_log = logging.getLogger(__name__)
GROUP = "rlgkd.rewards"


def shipped_rewards() -> dict[str, Callable[..., Reward]]:
    """What makes a reward, by name: all of rlgkd.envs.rewards that is not made of other rewards."""
    return {name: getattr(rewards, name) for name in rewards.__all__ if name not in ("Shaped", "Weighted")}


def plugin_rewards() -> dict[str, EntryPoint]:
    """What other packages bring along, by name, not yet imported; a name that is taken is left out with a warning."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in shipped_rewards() or entry.name in found:
            owner = origin(found[entry.name]) if entry.name in found else "rlgkd"
            _log.warning("reward %r of %s is left out: %s has one of that name", entry.name, origin(entry), owner)
        else:
            found[entry.name] = entry
    return found


def origin(entry: EntryPoint) -> str:
    """The name of the package that an entry point comes from."""
    return entry.dist.name if entry.dist else entry.value


def reward_from(given: Any) -> Reward:
    """The reward that a setting names (see the head of this file).

    Raises: SettingError for an unknown name, or settings that its maker does not take; DependencyError.
    """
    if callable(given):
        return cast(Reward, given)
    if isinstance(given, str):
        return _named(given, {})
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        return _named(given["name"], {k: v for k, v in given.items() if k != "name"})
    if isinstance(given, Mapping):
        return _sum(dict(given))
    if isinstance(given, Sequence):
        parts: dict[str, Any] = {}
        for part in given:
            name = part.get("name") if isinstance(part, Mapping) else getattr(part, "__name__", part)
            if isinstance(name, str) and is_import_path(name):
                name = name.rpartition(":")[2]
            if not isinstance(name, str) or name in parts:
                raise SettingError("reward", name, "name the parts of the sum, each once: {part: reward}")
            parts[name] = part
        return _sum(parts)
    raise SettingError("reward", given, "give a function, a name, an import path, or a list or mapping of them")


def _named(name: str, settings: dict[str, Any]) -> Reward:
    shipped = shipped_rewards()
    if ":" in name and name not in shipped:
        reward = import_object("reward", name)
        if not callable(reward):
            raise SettingError("reward", name, "give the path of a function")
        return cast(Reward, partial(reward, **settings) if settings else reward)
    make: Callable[..., Any]
    if name in shipped:
        make = shipped[name]
    else:
        plugins = plugin_rewards()
        if name.endswith(".py"):
            raise SettingError("reward", name, f"say which function of the file: {name}:FUNCTION")
        if name not in plugins:
            raise SettingError("reward", name, unknown_remedy(name, [*shipped, *plugins]))
        make = import_object("reward", plugins[name].value.partition("[")[0])
    try:
        inspect.signature(make).bind(**settings)
    except TypeError as error:
        takes = ", ".join(inspect.signature(make).parameters) or "no settings"
        raise SettingError("reward", {"name": name, **settings}, f"{error}; {name} takes {takes}") from error
    made = make(**settings)
    if not callable(made):
        raise SettingError("reward", name, f"its maker returned {type(made).__name__}, not a function")
    return cast(Reward, made)


def _sum(parts: dict[str, Any]) -> Reward:
    weighted: dict[str, tuple[float, Reward]] = {}
    for part, given in parts.items():
        weight = given.get("weight", 1) if isinstance(given, Mapping) else 1
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise SettingError("reward", weight, f"the weight of {part} is a number")
        if isinstance(given, Mapping):
            given = {key: value for key, value in given.items() if key != "weight"}
            if "name" not in given:
                raise SettingError("reward", part, "say which reward it is: {part: {name: ..., weight: ...}}")
        weighted[str(part)] = (weight, reward_from(given))
    return rewards.Weighted(weighted)
