"""Rewards by name: those that are shipped, those of other packages, and functions by import path.

A reward is given as
- a function;
- a name: one of rlgkd.envs.rewards, or of another package's entry point in the group `rlgkd.rewards`. It names the
  function that makes the reward, which is called with the settings given with the name:
  `{"name": "rouge", "kind": "rougeL"}`;
- an import path of the reward itself, `package.module:function` or `folder/file.py:function`; settings given with it
  become arguments of each call;
- a list of these, or a mapping {part: one of these}: their sum, each times its `weight` (1 if none is given).

Measures of quality are named in the same way. Unlike a reward, one that fails ends the evaluation: a mean over the
others would be of another question.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from rlgkd.envs.rewards.arguments import Reward
from rlgkd.envs.rewards.causal_judge import CausalJudge
from rlgkd.envs.rewards.combined import Weighted
from rlgkd.envs.rewards.entailment import Entailment
from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.rewards.http import judge, served
from rlgkd.envs.rewards.mathematics import mathematics
from rlgkd.envs.rewards.reward_model import RewardModel
from rlgkd.envs.rewards.text import bleu, chrf, exact, length, numeric, pattern, rouge
from rlgkd.errors import SettingError, unknown_remedy
from rlgkd.imports import import_object, is_import_path
from rlgkd.types import Item

_log = logging.getLogger(__name__)
GROUP = "rlgkd.rewards"
"""The entry points by which other packages bring rewards."""
Quality = Callable[[Sequence[Item], Sequence[str]], list[dict[str, float]]]
"""(items, completions) -> measures for evaluation, by name."""
SHIPPED: Mapping[str, Callable[..., Reward]] = {
    "CausalJudge": CausalJudge,
    "Entailment": Entailment,
    "RewardModel": RewardModel,
    "bleu": bleu,
    "chrf": chrf,
    "exact": exact,
    "judge": judge,
    "length": length,
    "mathematics": mathematics,
    "numeric": numeric,
    "pattern": pattern,
    "rouge": rouge,
    "served": served,
}
"""Makers of rewards: all of rlgkd.envs.rewards that is not made of other rewards."""


def shipped_rewards() -> dict[str, Callable[..., Reward]]:
    """Return the makers of the shipped rewards."""
    return dict(SHIPPED)


def plugin_rewards() -> dict[str, EntryPoint]:
    """Return the rewards of other packages by name, not yet imported; a taken name is left out with a warning."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in SHIPPED or entry.name in found:
            owner = _package(found[entry.name]) if entry.name in found else "rlgkd"
            _log.warning("reward %r of %s is left out: %s has one of that name", entry.name, _package(entry), owner)
        else:
            found[entry.name] = entry
    return found


def reward_from(given: Any) -> Reward:
    """Return the reward that a setting names (see the head of this file).

    Raises: SettingError for an unknown name, or settings that its maker does not take; DependencyError.
    """
    if callable(given):
        return cast(Reward, given)
    if isinstance(given, str):
        return _named_reward(given, {})
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        return _named_reward(given["name"], {key: value for key, value in given.items() if key != "name"})
    if isinstance(given, Mapping):
        return _weighted_sum(given)
    if isinstance(given, Sequence):
        return _weighted_sum(_named_parts(given))
    raise SettingError("reward", given, "give a function, a name, an import path, or a list or mapping of them")


def _named_reward(name: str, settings: dict[str, Any]) -> Reward:
    if ":" in name and name not in SHIPPED:
        reward = import_object("reward", name)
        if not callable(reward):
            raise SettingError("reward", name, "give the path of a function")
        return cast(Reward, partial(reward, **settings) if settings else reward)
    maker = _maker(name)
    try:
        inspect.signature(maker).bind(**settings)
    except TypeError as error:
        taken = ", ".join(inspect.signature(maker).parameters) or "no settings"
        about = (inspect.getdoc(maker) or "").partition("\n")[0]
        remedy = f"{error}; {name} takes {taken}" + (f": {about}" if about else "")
        raise SettingError("reward", {"name": name, **settings}, remedy) from error
    reward = maker(**settings)
    if not callable(reward):
        raise SettingError("reward", name, f"its maker returned {type(reward).__name__}, not a function")
    return cast(Reward, reward)


def _maker(name: str) -> Callable[..., Any]:
    if name in SHIPPED:
        return SHIPPED[name]
    plugins = plugin_rewards()
    if name.endswith(".py"):
        raise SettingError("reward", name, f"say which function of the file: {name}:FUNCTION")
    if name not in plugins:
        raise SettingError("reward", name, unknown_remedy(name, [*SHIPPED, *plugins]))
    path = plugins[name].value.partition("[")[0]  # without the extras that an entry point may list after its path
    return cast(Callable[..., Any], import_object("reward", path))


def _named_parts(given: Sequence[Any]) -> dict[str, Any]:
    """The parts of a list of rewards, each under the reward's own name."""
    parts: dict[str, Any] = {}
    for part in given:
        name = part.get("name") if isinstance(part, Mapping) else getattr(part, "__name__", part)
        if isinstance(name, str) and is_import_path(name):
            name = name.rpartition(":")[2]
        if not isinstance(name, str) or name in parts:
            raise SettingError("reward", name, "name the parts of the sum, each once: {part: reward}")
        parts[name] = part
    return parts


def _weighted_sum(parts: Mapping[Any, Any]) -> Reward:
    weighted: dict[str, tuple[float, Reward]] = {}
    for part, given in parts.items():
        weight = given.get("weight", 1) if isinstance(given, Mapping) else 1
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise SettingError("reward", weight, f"the weight of {part} is a finite number")
        if isinstance(given, Mapping):
            given = {key: value for key, value in given.items() if key != "weight"}
            if "name" not in given:
                raise SettingError("reward", part, "say which reward it is: {part: {name: ..., weight: ...}}")
        weighted[str(part)] = (weight, reward_from(given))
    return Weighted(weighted)


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def quality_from(given: Quality | str | Mapping[str, Any] | None) -> Quality | None:
    """Return the measures that the setting `quality` names.

    A text, or a mapping with `name`, is one measure, as rewards are named; any other mapping holds a measure under each
    of its names. A function is called with items and completions and returns a mapping for each.

    Raises: SettingError for an unknown name; DependencyError.
    """
    if given is None or (callable(given) and not isinstance(given, str | Mapping)):
        return given
    if isinstance(given, str):
        named: Mapping[str, Any] = {given.rpartition(":")[2]: given}
    elif isinstance(given, Mapping):
        named = {str(given["name"]).rpartition(":")[2]: given} if isinstance(given.get("name"), str) else given
    else:
        raise SettingError("quality", given, "give a function, a name, an import path, or a mapping of them")
    return _Measures({name: Grader(_measure(name, one), max_failed=1.0) for name, one in named.items()})


def _measure(name: str, given: Any) -> Callable[..., Any]:
    try:
        return reward_from(given)
    except SettingError as error:
        raise SettingError(f"quality.{name}", given, error.remedy) from error


class _Measures:
    """Calls each as a reward is called, with the arguments that it asks for."""

    def __init__(self, graders: Mapping[str, Grader]) -> None:
        self._graders = graders

    def __call__(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in items]
        for name, grader in self._graders.items():
            for row, score in zip(found, grader(items, completions), strict=True):
                if math.isnan(score.reward):
                    raise SettingError("quality", name, f"it failed for a text: {score.failure or 'it is no number'}")
                row[name] = score.reward
        return found
