"""Checks the arguments of a function that settings name against its type hints: YAML may hold anything."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from rlgkd.errors import SettingError
from rlgkd.settings.remedies import takes_none

F = TypeVar("F", bound=Callable[..., Any])
_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text (a string)",
    types.NoneType: "null",
}


def checked_arguments(function: F) -> F:
    """Let a function refuse arguments that are not of its type hints; a hint that cannot be checked is not.

    None stands for the default where None is no value of the argument, as in `Settings`.

    Raises, when called: SettingError with the argument's name, its value and what would work.

    Examples:
        >>> @checked_arguments
        ... def length(words: int) -> int:
        ...     return words
        >>> length("x")
        Traceback (most recent call last):
        ...
        rlgkd.errors.SettingError: words: 'x' does not work; give a whole number
        >>> length(1, 2)
        Traceback (most recent call last):
        ...
        TypeError: length: too many positional arguments; give by name: words
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            taken = ", ".join(name for name in signature.parameters if name != "self")
            called = function.__qualname__.removesuffix(".__init__")
            raise TypeError(f"{called}: {error}; give by name: {taken}") from None
        hints = _hints(function)
        for name, value in given.items():
            parameter = signature.parameters[name]
            if name not in hints or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            is_left_out = value is None and parameter.default is not parameter.empty and not takes_none(hints[name])
            if is_left_out and name in kwargs and hints[name] is not Any:
                kwargs[name] = parameter.default
            elif not _fits(value, hints[name]):
                raise SettingError(name, value, f"give {_words(hints[name])}")
        return function(*args, **kwargs)

    return cast(F, call)


@functools.cache
def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # of what is imported for type checkers alone
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as that can be seen."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if hint in _NUMBERS:
        is_bool = isinstance(value, bool | np.bool_)
        return is_bool if hint is bool else isinstance(value, _NUMBERS[hint]) and not is_bool
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    try:
        if not isinstance(value, kind):
            return False
    except TypeError:  # a protocol that cannot be asked for
        return True
    if isinstance(value, Mapping) and len(options) == 2:
        return all(_fits(key, options[0]) and _fits(inner, options[1]) for key, inner in value.items())
    if issubclass(kind, str) or not issubclass(kind, Sequence):
        return True
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):  # a sequence of characters is not meant
        return False
    each = options[0] if options and (kind is not tuple or options[-1:] == (...,)) else Any
    return all(_fits(inner, each) for inner in value)


_NUMBERS: Mapping[Any, Any] = {bool: bool, int: Integral, float: Real}


def _words(hint: Any) -> str:
    """What would work, in words."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, options)))
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if hint in _WORDS:
        return _WORDS[hint]
    kind = origin or hint
    if not isinstance(kind, type):
        return "a value of its type"
    if kind.__name__ == "Callable":
        return "a function"
    if issubclass(kind, Mapping):
        return "names and values"
    if issubclass(kind, Sequence):
        kinds: Mapping[Any, str] = {str: "texts", int: "whole numbers", float: "numbers"}
        inner = kinds.get(options[0], "values") if options else "values"
        return f"a list of {inner}"
    return f"a {kind.__name__}"
