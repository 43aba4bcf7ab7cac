"""Functions and settings by their names, with an error that says which name was probably meant."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec

import torch
from torch import Tensor

from rlgkd.errors import SettingError

Pairwise = Callable[[Tensor, Tensor], Tensor]
"""A function of the teacher's and the student's logits."""
Given = ParamSpec("Given")


class UnknownSettingError(SettingError):
    """A setting that its owner does not take; `known` are those that it does."""

    def __init__(self, field: str, value: object, owner: str, known: Iterable[str]) -> None:
        self.known = {*known}
        shown = value if isinstance(value, str | int | float | None) else type(value).__name__  # a model fills pages
        super().__init__(field, shown, f"{owner} has no such setting; {unknown_remedy(field, self.known)}")


def checked_kwargs(constructor: Callable[Given, None]) -> Callable[Given, None]:
    """A class's `__init__` that names a misspelt or missing setting, where Python raises a bare TypeError.

    Raises (when called): UnknownSettingError; SettingError for a setting that is needed.
    """
    parameters = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def checked(*given: Given.args, **settings: Given.kwargs) -> None:
        owner = type(given[0])
        for name, value in settings.items():
            if name not in parameters:
                raise UnknownSettingError(name, value, owner.__name__, _settings_of(owner))
        for name, parameter in list(parameters.items())[len(given) :]:
            if parameter.default is parameter.empty and name not in settings:
                raise SettingError(name, None, f"{owner.__name__} needs it; pass {name}=...")
        constructor(*given, **settings)

    return checked


def keywords(function: Callable[..., Any]) -> set[str]:
    """The arguments that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def _settings_of(owner: type) -> set[str]:
    """What a class's `__init__` takes, and those that it passes the rest on to."""
    found: set[str] = set()
    for class_ in owner.__mro__:
        if constructor := vars(class_).get("__init__"):
            found |= keywords(constructor) - {"self"}
            if not takes_any(constructor):
                break
    return found


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function takes arguments of any name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def bind(
    kind: str, name: str, functions: Mapping[str, Callable[..., Tensor]], settings: Mapping[str, float | bool]
) -> Pairwise:
    """Return the function of (teacher_logits, student_logits) of this name, with its keyword-only arguments bound.

    Raises:
        SettingError: an unknown name, an unknown or missing setting, or a value outside its range.
    """
    function = functions[check_name(kind, name, functions)]
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [p.name for p in parameters]
    for field, value in settings.items():
        if field not in known:
            raise SettingError(field, value, f"{name} does not take it; {unknown_remedy(field, known)}")
    for p in parameters:
        if p.default is p.empty and p.name not in settings:
            raise SettingError(p.name, None, f"{name} needs it; pass {p.name}=...")
    bound = functools.partial(function, **settings)
    bound(torch.zeros(1), torch.zeros(1))  # the values of the settings are checked now, not at the first batch
    return bound


def check_name(field: str, name: object, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Raises:
        SettingError: it is not; the message names the nearest known name and lists them all.
    """
    choices = sorted(known)
    if isinstance(name, str) and name in choices:
        return name
    raise SettingError(field, name, unknown_remedy(name, choices))


def unknown_remedy(name: object, known: Iterable[str]) -> str:
    """Return the advice for an unknown name: the nearest known one, if any is near, and the list."""
    choices = sorted(known)
    listed = f"known: {', '.join(choices)}" if choices else "none is taken here"
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), choices, n=1)
    return f"did you mean {near[0]!r}? {listed}" if near else listed
