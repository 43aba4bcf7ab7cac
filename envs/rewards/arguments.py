"""Which arguments a reward takes: it names them in its signature, for a batch or for one sample at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlgkd.errors import SettingError
from rlgkd.types import REWARD_ARGUMENTS, Item

Reward = Callable[..., Any]
"""A function of any of `prompts`, `completions`, `references`, `items` and the data's columns, each a list over the
batch, that returns one number (of any library) or Score for each sample. Or a function of `prompt`, `completion`,
`reference`, `item` and columns, that is called for each sample and returns one. A reference is a text, or a tuple of
right answers where the data has a list of them. It may be `async`, or return what has to be awaited. Three more things
may stand in a number's place: None, where the reward does not apply; an exception, for a sample that failed alone; a
list of numbers, one for each action (the actions are the argument `tokens`, as text)."""


@dataclass(frozen=True, kw_only=True)
class RewardCall:
    """One call of a reward."""

    arguments: Mapping[str, Any]
    size: int
    """Samples that the call is for."""
    single: bool
    """Whether the reward takes one sample at a time, and returns its value without a list around it."""


def reward_calls(
    reward: Reward, items: Sequence[Item], completions: Sequence[str], extra: Mapping[str, Sequence[Any]]
) -> list[RewardCall]:
    """Return the calls that score a batch: one, or one for each sample if the reward takes single samples.

    `extra` holds further arguments by name, each a list over the batch. A reward that takes **kwargs gets everything
    there is; the defaults of its parameters stand in for what there is not.

    Raises: SettingError for an argument that does not exist or has no name, or if there are none.
    """
    available: dict[str, list[Any]] = {
        **_shared_columns(items),
        "prompts": [item.prompt for item in items],
        "completions": list(completions),
        "references": [item.references or item.reference for item in items],
        "items": list(items),
        **{name: list(values) for name, values in extra.items()},
    }
    parameters = inspect.signature(reward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    # A column may be called like an argument for one sample: it is then a list over the batch.
    single = any(p.name in REWARD_ARGUMENTS and p.name not in available for p in named)
    if single:
        available |= {one: available.pop(many) for one, many in REWARD_ARGUMENTS.items()}
    if not named and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        remedy = f"it takes no arguments; name some of {', '.join(sorted(available))}"
        raise SettingError("reward", getattr(reward, "__name__", type(reward).__name__), remedy)
    for parameter in named:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise SettingError("reward", parameter.name, "arguments are given by name; leave out the / after it")
        if parameter.default is parameter.empty and parameter.name not in available:
            known = ", ".join(sorted(available))
            raise SettingError("reward", parameter.name, f"name its arguments after what there is: {known}")
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        arguments = available
    else:
        arguments = {p.name: available[p.name] for p in named if p.name in available}
    if not single:
        return [RewardCall(arguments=arguments, size=len(completions), single=False)]
    return [
        RewardCall(arguments={name: values[row] for name, values in arguments.items()}, size=1, single=True)
        for row in range(len(completions))
    ]


def asks_for(reward: Reward, name: str) -> bool:
    """Whether a reward, or one that it is made of, has an argument of that name."""
    asks_for_parts = getattr(reward, "asks_for", None)
    if asks_for_parts is not None:
        return bool(asks_for_parts(name))
    parameters = inspect.signature(reward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def signature_of(names: Sequence[str]) -> inspect.Signature:
    """Return a `__signature__` for a reward that learns the names of its arguments from its settings.

    Raises: SettingError for a name that no argument can have, or that is given twice.
    """
    try:
        return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    except ValueError as error:
        raise SettingError("columns", tuple(names), f"name each column of the data once ({error})") from error


def _shared_columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    return {
        name: [item.columns[name] for item in items]
        for name in items[0].columns
        if all(name in item.columns for item in items)
    }
