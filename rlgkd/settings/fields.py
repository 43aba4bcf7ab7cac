"""The two kinds of fields that have several flat names, and how any setting is declared under one of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from rlgkd.errors import RlgkdError, SettingError, one_line, unknown_remedy
from rlgkd.imports import import_object, is_import_path
from rlgkd.ops.schedule import Schedule, Shape
from rlgkd.settings.remedies import refuses_bool, remedy_for, takes_none

Moving = Callable[[float], float]
"""A function of the remaining progress: 1 when training starts, 0 when it ends. `Schedule` is the one with names."""
REQUIRED = inspect.Parameter.empty


class Declared(NamedTuple):
    """A setting under one of its flat names."""

    name: str
    type: Any
    default: Any
    """`REQUIRED` if there is none; for a parameter with several owners, each owner's."""
    sentence: str


@dataclass(frozen=True)
class Variant:
    """One of several registered functions, by its name, with the values of its own parameters."""

    name: str
    parameters: tuple[tuple[str, Any], ...]
    function: Callable[..., Any] = field(compare=False, repr=False)
    """The function with its parameters bound."""


@dataclass(frozen=True)
class Registered:
    """Marks a field whose value is a `Variant`: one of `table`, to which others may add.

    A function of the user's own is given as such, or by an import path, and is added under that path. The
    keyword-only parameters of a function are the settings that belong to it: name, type and default stand in its
    signature, the sentence in its docstring's `Args:`; it refuses values out of range itself.
    """

    kind: str
    """The field's name."""
    table: dict[str, Callable[..., Any]]
    get: Callable[..., Callable[..., Any]]
    """(name, **parameters) -> the function with its parameters bound; it refuses what the function does not take."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Validate by `variant`, and take None where the annotation does."""
        check = core_schema.no_info_plain_validator_function(self.variant)
        return core_schema.nullable_schema(check) if takes_none(source) else check

    def __call__(self, name: str, **parameters: Any) -> Variant:
        """The variant of this name.

        Raises: SettingError for an unknown name, or a parameter that is unknown, missing or out of range.
        """
        return self.variant({"name": name, **parameters})

    def named(self, value: Any) -> Any:
        """The name of a user's own function, given as such or by an import path; any other value as it is.

        Raises: SettingError for a path that leads to none.
        """
        if callable(value):
            function = value
            name = f"{value.__module__}:{getattr(value, '__qualname__', type(value).__qualname__)}"
            while self.table.get(name, function) is not function:  # two lambdas, say
                name += "'"
        elif isinstance(value, str) and value not in self.table and is_import_path(value):
            name, function = value, import_object(self.kind, value)
            if not callable(function):
                raise SettingError(self.kind, value, f"it is of type {type(function).__name__}; name a function")
        else:
            return value
        self.table[name] = function
        return name

    def variant(self, value: Any) -> Variant:
        """The variant of a name, or of `{"name": ..., parameter: value}`."""
        if isinstance(value, Variant):
            return value
        given = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = self.named(given.pop("name", None))
        if not isinstance(name, str) or name not in self.table:
            raise SettingError(self.kind, name, unknown_remedy(name, self.table))
        declared = {parameter.name: parameter for parameter in parameters_of(self.table[name])}
        for key, wrong in given.items():
            if key not in declared:
                raise SettingError(key, wrong, f"{name} does not take it; {unknown_remedy(key, declared)}")
        bound: dict[str, Any] = {}
        for key, parameter in declared.items():
            chosen = given.get(key)
            chosen = parameter.default if chosen is None else chosen
            if chosen is REQUIRED:
                raise SettingError(key, None, f"{name} needs it; pass {key}=...")
            bound[key] = _typed(parameter, chosen)
        try:
            return Variant(name, tuple(bound.items()), self.get(name, **bound))
        except RlgkdError:
            raise
        except Exception as error:  # of a function of the user's own
            remedy = f"it raised {one_line(f'{type(error).__name__}: {error}', 200)}"
            raise SettingError(self.kind, name, remedy) from error

    def taken(self, name: str) -> set[str]:
        """The names of the parameters of one function; of an unknown one, none."""
        return {p.name for p in parameters_of(self.table[name])} if name in self.table else set()

    def parameters(self) -> Iterator[Declared]:
        """The parameters of all functions, each name once, its sentence with the functions that take it."""
        takers: dict[str, dict[str, Declared]] = {}
        for name, function in self.table.items():
            for parameter in parameters_of(function):
                takers.setdefault(parameter.name, {})[name] = parameter
        for name, declared in takers.items():
            first = next(iter(declared.values()))
            defaults = {taker: parameter.default for taker, parameter in declared.items()}
            same = all(default == first.default for default in defaults.values())
            owners: dict[str, list[str]] = {}
            for taker, parameter in declared.items():
                owners.setdefault(parameter.sentence, []).append(taker)
            sentences = [
                f"Of {' and '.join(some)}: {sentence[:1].lower()}{sentence[1:]}" for sentence, some in owners.items()
            ]
            yield Declared(name, first.type | None, first.default if same else defaults, " ".join(sentences))

    def spelled(self, text: str) -> tuple[str, dict[str, Any]]:
        """A variant as papers write it: `jsd(0.9)` is jsd with its first parameter, beta, at 0.9.

        Raises: SettingError for brackets that hold no number, or follow a function without parameters.
        """
        name, bracket, inside = text.partition("(")
        name = self.named(name)
        if not bracket:
            return name, {}
        first = {known: parameters_of(function) for known, function in self.table.items()}
        try:
            return name, {first[name][0].name: float(inside[: inside.index(")", len(inside) - 1)])}
        except (KeyError, IndexError, ValueError):
            forms = ", ".join(f"{known}({some[0].name.upper()})" for known, some in first.items() if some)
            raise SettingError(self.kind, text, f"write a name alone, or {forms}") from None


@dataclass(frozen=True)
class Scheduled:
    """Marks a field whose value is a `Schedule`, or another function of the remaining progress, in [0, 1]."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """What `_nested` has made of the flat names is what it is to be."""
        return core_schema.any_schema()

    def schedule(self, name: str, start: Any, end: Any, shape: Any) -> Moving:
        """A number as a constant schedule, two as one that moves, a function as it is.

        Raises: SettingError for a number out of range, or a shape without an end.
        """
        if isinstance(start, Schedule):
            start, end, shape = start.start, start.end, start.shape
        elif callable(start):
            for remaining in (1.0, 0.0):
                try:
                    value = start(remaining)
                except Exception as error:  # of the user's own function
                    value = f"{type(error).__name__}: {error}"
                self._number(name, "", value)
            return cast(Moving, start)
        if shape not in (None, *get_args(Shape)):
            raise SettingError(f"{name}_shape", shape, f"choose one of {', '.join(get_args(Shape))}")
        if end is None and shape not in (None, "linear"):
            raise SettingError(f"{name}_shape", shape, f"say where it goes, with {name}_end")
        if start is None:
            raise SettingError(f"{name}_end", end, f"say where it begins, with {name}")
        end = None if end is None else self._number(name, "_end", end)
        return Schedule(self._number(name, "", start), end, shape or "linear")

    def _number(self, name: str, ending: str, value: Any) -> float:
        try:
            number = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            number = float("nan")
        if not 0 <= number <= 1:
            raise SettingError(f"{name}{ending}", value, "give a number in [0, 1]")
        return number


def span(schedule: Moving) -> tuple[float, float]:
    """The least and the greatest value that a schedule takes.

    Examples:
        >>> span(Schedule(1.0, 0.25)), span(Schedule(0.5)), span(lambda remaining: 1 - remaining)
        ((0.25, 1.0), (0.5, 0.5), (0.0, 1.0))
    """
    # A Schedule moves in one direction, so its ends tell; any other function is sampled.
    steps = (1.0, 0.0) if isinstance(schedule, Schedule) else tuple(step / 100 for step in range(101))
    values = [schedule(remaining) for remaining in steps]
    return min(values), max(values)


@cache
def parameters_of(function: Callable[..., Any]) -> tuple[Declared, ...]:
    """A function's keyword-only parameters, with the sentences of its docstring's `Args:`."""
    sentences = arguments_of(inspect.getdoc(function) or "")
    hints = get_type_hints(function if inspect.isroutine(function) else type(function).__call__, include_extras=True)
    return tuple(
        Declared(p.name, hints.get(p.name, Any), p.default, sentences.get(p.name, ""))
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    )


def arguments_of(docstring: str) -> dict[str, str]:
    """The sentences of a docstring's `Args:` by argument."""
    section = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def mark_of(info: FieldInfo) -> Registered | Scheduled | None:
    """How a field is marked, if it has several flat names."""
    return next((mark for mark in info.metadata if isinstance(mark, Registered | Scheduled)), None)


def _typed(parameter: Declared, value: Any) -> Any:
    if isinstance(value, bool) and refuses_bool(parameter.type):
        raise SettingError(parameter.name, value, remedy_for(parameter.type, []))
    try:
        return TypeAdapter(parameter.type).validate_python(value)
    except ValidationError:
        raise SettingError(parameter.name, value, remedy_for(parameter.type, [])) from None
