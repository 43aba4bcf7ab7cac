"""Lookup of functions and settings by name, with an error that suggests the name that was probably meant."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec

import torch
from torch import Tensor

from rlgkd.errors import SettingError, unknown_remedy

Pairwise = Callable[[Tensor, Tensor], Tensor]
"""(teacher_logits [..., V], student_logits [..., V]) -> Tensor."""
Bound = Callable[..., Tensor]
"""A registered function with its settings bound: it takes tensors alone."""
Args = ParamSpec("Args")


class UnknownSettingError(SettingError):
    """A setting that its owner does not take; `known` are the settings that it does take."""

    def __init__(self, field: str, value: object, owner: str, known: Iterable[str]) -> None:
        self.known = {*known}
        shown = value if isinstance(value, str | int | float | None) else type(value).__name__  # a model fills pages
        super().__init__(field, shown, f"{owner} has no such setting; {unknown_remedy(field, self.known)}")


def checked_kwargs(constructor: Callable[Args, None]) -> Callable[Args, None]:
    """Decorate an `__init__` so that it names a misspelt or missing setting, where Python raises a bare TypeError.

    Raises (when called): UnknownSettingError; SettingError for a required setting that is missing.
    """
    parameters = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def checked(*args: Args.args, **settings: Args.kwargs) -> None:
        owner = type(args[0])
        for name, value in settings.items():
            if name not in parameters:
                raise UnknownSettingError(name, value, owner.__name__, _constructor_keywords(owner))
        for name, parameter in list(parameters.items())[len(args) :]:
            if parameter.default is parameter.empty and name not in settings:
                raise SettingError(name, None, f"{owner.__name__} needs it; pass {name}=...")
        constructor(*args, **settings)

    return checked


def keywords(function: Callable[..., Any]) -> set[str]:
    """The names of a function's arguments that may be passed by keyword."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function has `**kwargs`, and so takes a keyword of any name."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def _constructor_keywords(class_: type) -> set[str]:
    """The keywords of a class's `__init__`, and of its bases' as long as each passes `**kwargs` on."""
    found: set[str] = set()
    for base in class_.__mro__:
        if constructor := vars(base).get("__init__"):
            found |= keywords(constructor) - {"self"}
            if not takes_any(constructor):
                break
    return found


def bind(
    kind: str,
    name: str,
    functions: Mapping[str, Callable[..., Tensor]],
    settings: Mapping[str, float | bool],
    *,
    tensors: int = 2,
    reduces: bool = False,
) -> Bound:
    """Return the function of this name with its settings, the keyword-only arguments, bound.

    Args:
        kind: The setting that holds the name, such as `divergence`, for the error.
        name: A key of `functions`.
        functions: The registered functions by name.
        settings: Values of keyword-only arguments.
        tensors: How many tensors the function takes.
        reduces: Whether the last dimension is gone from what it returns.

    Raises:
        SettingError: an unknown name, an unknown or missing setting, a value outside its range, or a function that
            returns something else.
    """
    function = functions[check_name(kind, name, functions)]
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for field, value in settings.items():
        if field not in known:
            raise SettingError(field, value, f"{name} does not take it; {unknown_remedy(field, known)}")
    for field, parameter in known.items():
        if parameter.default is parameter.empty and field not in settings:
            raise SettingError(field, None, f"{name} needs it; pass {field}=...")
    bound = functools.partial(function, **settings)
    # Called now, so that the settings' values are not checked at the first batch.
    found: Any = bound(*[torch.zeros(2, 1)] * tensors)
    shape = (2,) if reduces else (2, 1)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        made = [*found.shape] if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise SettingError(kind, name, f"of tensors [2, 1] it made {made}; return {[*shape]}")
    return bound


def check_name(field: str, name: object, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`.

    Raises:
        SettingError: it is not; the message names the nearest known name and lists all of them.
    """
    choices = sorted(known)
    if isinstance(name, str) and name in choices:
        return name
    raise SettingError(field, name, unknown_remedy(name, choices))
