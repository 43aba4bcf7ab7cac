"""Settings: declared once, typed and checked; nested inside, one flat list of names outside.

A setting is a field of a `Settings` class: its type with its range, its default, and the sentence under it. Groups are
fields that are `Settings` themselves. Constructors, YAML files and `key=value` on the command line see flat names
alone, and two kinds of fields have several of them:

    Registered   `divergence: jsd` and `beta: 0.9`: a function by its name, with parameters of its own
    Scheduled    `alpha: 1`, `alpha_end: 0` and `alpha_shape: cosine`: a number that may move during training

A class is built from flat names, `Objective(divergence="jsd", beta=0.9)`, and `flat()` gives them back. A value that
does not work is refused in one line, with the field, the value and what would work, wherever it was given.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from rlgkd.errors import SettingError
from rlgkd.ops._registry import UnknownSettingError, unknown_remedy
from rlgkd.ops.schedule import Schedule, Shape

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


class Settings(BaseModel):
    """Base of all settings: frozen, and closed to names that it does not declare."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, arbitrary_types_allowed=True
    )
    owner: ClassVar[str] = "this"
    """Who takes the settings, as error messages call it."""
    fixed: ClassVar[frozenset[str]] = frozenset()
    """Settings whose default is the only value."""

    def __init__(self, **given: Any) -> None:
        """Build from flat names; what is not given keeps its default.

        None stands for the default where None is no value of the setting. A parameter of a variant that was not chosen
        is accepted if it is None or at its default, as files of all settings hold it.

        Raises: SettingError for an unknown name, a value out of range, or a parameter of another variant.
        """
        rest = dict(given)
        values = _nested(type(self), None, rest)
        for name, value in rest.items():
            _refuse_unless_idle(type(self), name, value, given)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_setting_error(type(self), error) from error
        for name in self.fixed & given.keys():
            only = type(self).declared()[name].default
            if self.flat()[name] != only:
                raise SettingError(name, given[name], f"{self.owner} fixes it at {only}; leave it out")

    def flat(self) -> dict[str, Any]:
        """All settings under their flat names, as the constructor takes them."""
        found: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):  # its names that this class has too are this class's
                found = {**value.flat(), **found}
            elif isinstance(value, Variant):
                found |= {name: value.name, **dict(value.parameters)}
            elif isinstance(value, Schedule) and isinstance(_mark(info), Scheduled):
                found |= {name: value.start, f"{name}_end": value.end, f"{name}_shape": value.shape}
            else:
                found[name] = value
        return found

    @classmethod
    def declared(cls) -> dict[str, Declared]:
        """Every flat name with its type, default and sentence, in the order of declaration."""
        found: dict[str, Declared] = {}
        for name, info in cls.model_fields.items():
            default = info.get_default(call_default_factory=True)
            for setting in _declared(name, info, default):
                found.setdefault(setting.name, setting)
        return found


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

    The keyword-only parameters of a function are the settings that belong to it: name, type and default stand in its
    signature, the sentence in its docstring's `Args:`; it refuses values out of range itself.
    """

    kind: str
    """The field's name."""
    table: Mapping[str, Callable[..., Any]]
    get: Callable[..., Callable[..., Any]]
    """(name, **parameters) -> the function with its parameters bound; it refuses what the function does not take."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Validate by `variant`, and take None where the annotation does."""
        check = core_schema.no_info_plain_validator_function(self.variant)
        return core_schema.nullable_schema(check) if _takes_none(source) else check

    def __call__(self, name: str, **parameters: Any) -> Variant:
        """The variant of this name.

        Raises: SettingError for an unknown name, or a parameter that is unknown, missing or out of range.
        """
        return self.variant({"name": name, **parameters})

    def variant(self, value: Any) -> Variant:
        """The variant of a name, or of `{"name": ..., parameter: value}`."""
        if isinstance(value, Variant):
            return value
        given = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = given.pop("name")
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
        return Variant(name, tuple(bound.items()), self.get(name, **bound))

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
            sentence = f"Of {' and '.join(declared)}: {first.sentence[:1].lower()}{first.sentence[1:]}"
            yield Declared(name, first.type | None, first.default if same else defaults, sentence)

    def spelled(self, text: str) -> tuple[str, dict[str, Any]]:
        """A variant as papers write it: `jsd(0.9)` is jsd with its first parameter, beta, at 0.9.

        Raises: SettingError for brackets that hold no number, or follow a function without parameters.
        """
        name, bracket, inside = text.partition("(")
        if not bracket:
            return text, {}
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
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not 0 <= number <= 1:
            raise SettingError(f"{name}{ending}", value, "give a number in [0, 1]")
        return number


def span(schedule: Moving) -> tuple[float, float]:
    """The least and the greatest value that a schedule takes.

    Example:
        >>> span(Schedule(1.0, 0.25)), span(Schedule(0.5)), span(lambda remaining: 1 - remaining)
        ((0.25, 1.0), (0.5, 0.5), (0.0, 1.0))
    """
    # A Schedule moves in one direction, so its ends tell; any other function is sampled.
    steps = (1.0, 0.0) if isinstance(schedule, Schedule) else tuple(step / 100 for step in range(101))
    values = [schedule(remaining) for remaining in steps]
    return min(values), max(values)


def layered(cls: type[Settings], below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, both flat.

    If it chooses another variant, parameters that only the old one takes fall away, and those at the old one's default.

    Raises: SettingError for a variant whose brackets do not work.
    """
    kept = dict(below)
    for mark in _marks(cls):
        chosen = above.get(mark.kind)
        if not isinstance(chosen, str):
            continue
        name, spelled = mark.spelled(chosen)
        stale = {parameter.name for parameter in mark.parameters()} - mark.taken(name) | set(spelled)
        old = mark.table.get(below.get(mark.kind, ""))
        if old is not None and below[mark.kind] != name:
            stale |= {p.name for p in parameters_of(old) if below.get(p.name) == p.default}
        kept = {key: value for key, value in kept.items() if key not in stale}
    return {**kept, **above}


@cache
def parameters_of(function: Callable[..., Any]) -> tuple[Declared, ...]:
    """A function's keyword-only parameters, with the sentences of its docstring's `Args:`."""
    sentences = arguments_of(inspect.getdoc(function) or "")
    hints = get_type_hints(function, include_extras=True)
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


def remedy_for(annotation: Any, metadata: list[Any]) -> str:
    """What would work for a setting of this type and range.

    Example:
        >>> remedy_for(float, [Ge(0), Lt(1)]), remedy_for(int, [Ge(1)]), remedy_for(Literal["a", "b"], [])
        ('give a number in [0, 1)', 'give a whole number of 1 or more', 'choose one of a, b')
    """
    options = [option for option in get_args(annotation) if option is not types.NoneType]
    if get_origin(annotation) is Literal:
        return f"choose one of {', '.join(map(str, options))}"
    if get_origin(annotation) is Annotated:
        return remedy_for(options[0], [*options[1:], *metadata])
    if get_origin(annotation) in (Union, types.UnionType):
        return remedy_for(options[0], metadata)
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text (a string)"}
    kind = kinds.get(annotation, "names and values" if get_origin(annotation) is dict else "a list of numbers")
    low = next((bound for bound in metadata if isinstance(bound, Ge | Gt)), None)
    high = next((bound for bound in metadata if isinstance(bound, Le | Lt)), None)
    if low and high:
        opening = f"[{low.ge}" if isinstance(low, Ge) else f"({low.gt}"
        return f"give {kind} in {opening}, {f'{high.le}]' if isinstance(high, Le) else f'{high.lt})'}"
    if isinstance(low, Ge):
        return f"give {kind} of {low.ge} or more"
    return f"give {kind} above {low.gt}" if isinstance(low, Gt) else f"give {kind}"


def _mark(info: FieldInfo) -> Registered | Scheduled | None:
    return next((mark for mark in info.metadata if isinstance(mark, Registered | Scheduled)), None)


def _marks(cls: type[Settings]) -> Iterator[Registered]:
    """The registered fields of a class and its groups."""
    for info in cls.model_fields.values():
        default, mark = info.get_default(call_default_factory=True), _mark(info)
        if isinstance(default, Settings):
            yield from _marks(type(default))
        elif isinstance(mark, Registered):
            yield mark


def _declared(name: str, info: FieldInfo, default: Any) -> Iterator[Declared]:
    """A field under its flat names."""
    mark, sentence = _mark(info), info.description or ""
    if isinstance(default, Settings):
        own = default.flat()
        for inner in type(default).declared().values():
            yield inner._replace(default=own.get(inner.name, inner.default))
    elif isinstance(mark, Registered):
        yield Declared(name, str if default else str | None, default.name if default else None, sentence)
        yield from mark.parameters()
    elif isinstance(mark, Scheduled):
        yield Declared(name, float | Moving, default.start, sentence)
        yield Declared(f"{name}_end", float | None, default.end, f"Where {name} ends; null keeps it constant.")
        yield Declared(f"{name}_shape", Shape, default.shape, f"How {name} gets to {name}_end.")
    else:
        yield Declared(name, info.annotation, default, sentence)


def _nested(cls: type[Settings], defaults: Settings | None, rest: dict[str, Any]) -> dict[str, Any]:
    """Take the fields of a class out of flat names; `defaults` is the group's own, if it has one."""
    values: dict[str, Any] = {}
    groups: dict[str, Settings] = {}
    for name, info in cls.model_fields.items():
        own = info.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        mark = _mark(info)
        if isinstance(own, Settings):
            groups[name] = own
        elif isinstance(mark, Registered):
            values[name] = _variant(mark, own, rest)
        elif isinstance(mark, Scheduled):
            values[name] = _schedule(mark, name, own, rest)
        else:
            given = rest.pop(name, own)
            values[name] = own if given is None and not _takes_none(info.annotation) else given
    for name, own in groups.items():  # last: a name that both have is the outer one's, and moves from there
        given = rest.pop(name, None)
        if isinstance(given, Settings):
            values[name] = given
            continue
        inner = _nested(type(own), own, rest)
        shared = {key: values[key] for key in inner.keys() & values.keys()}
        starts = {key: value(1.0) if callable(value) else value for key, value in shared.items()}
        values[name] = {**inner, **starts}
    return values


def _variant(mark: Registered, own: Variant | None, rest: dict[str, Any]) -> Any:
    """The variant that flat names choose, `own` where they say nothing, as `Registered.variant` takes it."""
    chosen = rest.pop(mark.kind, None)
    if chosen is None and own is None:
        return None
    if isinstance(chosen, Variant | Mapping):
        return chosen
    spelled: dict[str, Any] = {}
    if isinstance(chosen, str):
        written = chosen
        chosen, spelled = mark.spelled(written)
        for key, value in spelled.items():
            if rest.get(key) not in (None, value):
                raise SettingError(key, rest[key], f"{mark.kind} is {written}; say it once")
    name = own.name if chosen is None and own is not None else chosen
    values = dict(own.parameters) if own is not None and own.name == name else {}
    for key in mark.taken(name) if isinstance(name, str) else ():
        given = rest.pop(key, None)
        values |= {} if given is None else {key: given}
    return {**values, **spelled, "name": name}


def _schedule(mark: Scheduled, name: str, own: Moving, rest: dict[str, Any]) -> Moving:
    """The schedule that flat names give, `own` where they say nothing."""
    start, end, shape = (rest.pop(key, None) for key in (name, f"{name}_end", f"{name}_shape"))
    if start is None and end is None and shape in (None, "linear"):
        return own
    return mark.schedule(name, start, end, shape)


def _refuse_unless_idle(cls: type[Settings], name: str, value: Any, given: Mapping[str, Any]) -> None:
    """Refuse a flat name that no field took, unless it is an idle parameter of a variant that was not chosen."""
    for mark in _marks(cls):
        takers = {taker: {p.name: p.default for p in parameters_of(f)} for taker, f in mark.table.items()}
        owners = [taker for taker, defaults in takers.items() if name in defaults]
        if not owners:
            continue
        if value is None or any(value == takers[owner][name] for owner in owners):
            return
        chosen = given.get(mark.kind)
        chosen = getattr(chosen, "name", chosen)
        own = f"{mark.kind} is {chosen}" if chosen else f"set {mark.kind}"
        raise SettingError(name, value, f"it belongs to {' or '.join(owners)}; {own}")
    raise UnknownSettingError(name, value, cls.owner, cls.declared())


def _typed(parameter: Declared, value: Any) -> Any:
    try:
        return TypeAdapter(parameter.type).validate_python(value)
    except ValidationError:
        raise SettingError(parameter.name, value, remedy_for(parameter.type, [])) from None


def _takes_none(annotation: Any) -> bool:
    return get_origin(annotation) is not Literal and types.NoneType in get_args(annotation)


def _as_setting_error(cls: type[Settings], error: ValidationError) -> SettingError:
    """The first complaint, with the remedy that the field's type and range tell."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return cause
    info = None
    for key in first["loc"]:
        if key in cls.model_fields:
            info = cls.model_fields[str(key)]
            default = info.get_default(call_default_factory=True)
            cls = type(default) if isinstance(default, Settings) else cls
            name = str(key)
    assert info is not None
    return SettingError(name, first["input"], remedy_for(info.annotation, info.metadata))
