"""The base of all settings: nested values inside, flat names outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from rlgkd.errors import SettingError
from rlgkd.ops._registry import UnknownSettingError
from rlgkd.ops.schedule import Schedule, Shape
from rlgkd.settings.fields import Declared, Moving, Registered, Scheduled, Variant, mark_of, parameters_of
from rlgkd.settings.remedies import refuses_bool, remedy_for, takes_none


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
        for name in self.fixed_names() & given.keys():
            only = type(self).declared()[name].default
            if self.flat()[name] != only:
                raise SettingError(name, given[name], f"{self.owner} fixes it at {only}; leave it out")
        _refuse_shared_names(self)

    def flat(self) -> dict[str, Any]:
        """All settings under their flat names, as the constructor takes them."""
        found: dict[str, Any] = {}
        groups: list[Settings] = []
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                groups.append(value)
            elif isinstance(value, Variant):
                found |= {name: value.name, **dict(value.parameters)}
            elif isinstance(value, Schedule) and isinstance(mark_of(info), Scheduled):
                found |= {name: value.start, f"{name}_end": value.end, f"{name}_shape": value.shape}
            else:
                found[name] = value
        for group in groups:  # a name that both have is this class's
            found |= {name: value for name, value in group.flat().items() if name not in found}
        return found

    @classmethod
    def fixed_names(cls) -> set[str]:
        """The flat names of the settings whose default is the only value."""
        ends = {f"{name}_{part}" for name in cls.fixed for part in ("end", "shape")}
        return {*cls.fixed} | (ends & cls.declared().keys())

    @classmethod
    def declared(cls) -> dict[str, Declared]:
        """Every flat name with its type, default and sentence, in the order of declaration."""
        found: dict[str, Declared] = {}
        for name, info in cls.model_fields.items():
            default = info.get_default(call_default_factory=True)
            for setting in _declared(name, info, default):
                found.setdefault(setting.name, setting)
        return found


def layered(cls: type[Settings], below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, both flat.

    If it chooses another variant, parameters that only the old one takes fall away, and those at the old one's default.
    If it gives a schedule's start, the old schedule's end and shape fall away.

    Raises: SettingError for a variant whose brackets do not work.
    """
    kept = dict(below)
    for mark in marks(cls):
        chosen = mark.named(above.get(mark.kind))
        if not isinstance(chosen, str):
            continue
        name, spelled = mark.spelled(chosen)
        stale = ({parameter.name for parameter in mark.parameters()} - mark.taken(name)) | {*spelled}
        old = mark.table.get(below.get(mark.kind, ""))
        if old is not None and below[mark.kind] != name:
            stale |= {p.name for p in parameters_of(old) if below.get(p.name) == p.default}
        kept = {key: value for key, value in kept.items() if key not in stale}
    moved = {name for name in above if f"{name}_end" in cls.declared()}
    kept = {key: value for key, value in kept.items() if key.removesuffix("_end").removesuffix("_shape") not in moved}
    return {**kept, **above}


def marks(cls: type[Settings]) -> Iterator[Registered]:
    """The registered fields of a class and its groups."""
    for info in cls.model_fields.values():
        default, mark = info.get_default(call_default_factory=True), mark_of(info)
        if isinstance(default, Settings):
            yield from marks(type(default))
        elif isinstance(mark, Registered):
            yield mark


def _declared(name: str, info: FieldInfo, default: Any) -> Iterator[Declared]:
    """A field under its flat names."""
    mark, sentence = mark_of(info), info.description or ""
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
        mark = mark_of(info)
        if isinstance(own, Settings):
            groups[name] = own
        elif isinstance(mark, Registered):
            values[name] = _variant(mark, own, rest)
        elif isinstance(mark, Scheduled):
            values[name] = _schedule(mark, name, own, rest)
        else:
            given = rest.pop(name, own)
            if isinstance(given, bool) and refuses_bool(info.annotation):
                raise SettingError(name, given, remedy_for(info.annotation, info.metadata))
            values[name] = own if given is None and not takes_none(info.annotation) else given
    for name, own in groups.items():  # last: a name that both have is the outer one's, and moves from there
        given = rest.pop(name, None)
        if isinstance(given, Settings):
            values[name] = given
            continue
        if given is not None:
            names = ", ".join([*type(own).declared()][:3])
            raise SettingError(name, given, f"give its settings by their own names: {names}, ...")
        inner = _nested(type(own), own, rest)
        shared = {key: values[key] for key in inner.keys() & values.keys()}
        starts = {key: value(1.0) if callable(value) else value for key, value in shared.items()}
        values[name] = {**inner, **starts}
    return values


def _variant(mark: Registered, own: Variant | None, rest: dict[str, Any]) -> Any:
    """The variant that flat names choose, `own` where they say nothing, as `Registered.variant` takes it."""
    chosen = mark.named(rest.pop(mark.kind, None))
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
    for mark in marks(cls):
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


def _refuse_shared_names(settings: Settings) -> None:
    """Refuse a variant with a parameter that has the name of another setting: which of the two would be meant?"""
    names = _field_names(type(settings))
    for variant in _variants(settings):
        for name, _ in variant.parameters:
            if name in names:
                raise SettingError(variant.name, name, "its parameter has the name of a setting; rename the parameter")


def _variants(settings: Settings) -> Iterator[Variant]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Variant):
            yield value
        elif isinstance(value, Settings):
            yield from _variants(value)


@cache
def _field_names(cls: type[Settings]) -> frozenset[str]:
    """Flat names without the parameters of variants."""
    found: set[str] = set()
    for name, info in cls.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            found |= _field_names(type(default))
        elif isinstance(mark_of(info), Scheduled):
            found |= {name, f"{name}_end", f"{name}_shape"}
        else:
            found.add(name)
    return frozenset(found)


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
