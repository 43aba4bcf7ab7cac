"""What would work for a setting, in words, from its type and its range."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt


def remedy_for(annotation: Any, metadata: list[Any]) -> str:
    """What would work for a setting of this type and range.

    Examples:
        >>> remedy_for(float, [Ge(0), Lt(1)]), remedy_for(int, [Ge(1)]), remedy_for(Literal["a", "b"], [])
        ('give a number in [0, 1)', 'give a whole number of 1 or more', 'choose one of a, b')
        >>> remedy_for(tuple[str, ...], []), remedy_for(tuple[int, ...], [])
        ('give a list of texts', 'give a list of numbers')
    """
    options = [option for option in get_args(annotation) if option is not types.NoneType]
    if get_origin(annotation) is Literal:
        return f"choose one of {', '.join(map(str, options))}"
    if get_origin(annotation) is Annotated:
        return remedy_for(options[0], [*options[1:], *metadata])
    if get_origin(annotation) in (Union, types.UnionType):
        return remedy_for(options[0], metadata)
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text (a string)"}
    listed = "a list of texts" if str in options else "a list of numbers"
    kind = kinds.get(annotation, "names and values" if get_origin(annotation) is dict else listed)
    low = next((bound for bound in metadata if isinstance(bound, Ge | Gt)), None)
    high = next((bound for bound in metadata if isinstance(bound, Le | Lt)), None)
    if low and high:
        opening = f"[{low.ge}" if isinstance(low, Ge) else f"({low.gt}"
        return f"give {kind} in {opening}, {f'{high.le}]' if isinstance(high, Le) else f'{high.lt})'}"
    if isinstance(low, Ge):
        return f"give {kind} of {low.ge} or more"
    return f"give {kind} above {low.gt}" if isinstance(low, Gt) else f"give {kind}"


def refuses_bool(annotation: Any) -> bool:
    """Whether this is a type of numbers, of which true and false are none, though Python's own bool is an int.

    Examples:
        >>> refuses_bool(Annotated[int, Ge(0)] | None), refuses_bool(float), refuses_bool(bool | int), refuses_bool(str)
        (True, True, False, False)
    """
    kinds = {*_kinds(annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


def _kinds(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from _kinds(option)
    else:
        yield annotation


def takes_none(annotation: Any) -> bool:
    """Whether None is a value of this type."""
    return get_origin(annotation) is not Literal and types.NoneType in get_args(annotation)
