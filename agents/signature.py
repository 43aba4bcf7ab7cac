"""The constructors' signatures and `Args:`, made from the settings that they take.

`agents/_signature.py` says the same to type checkers and editors; `python -m rlgkd.scripts.config.docs` writes it.
"""

from __future__ import annotations

import inspect
import json
import textwrap
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rlgkd.settings import Settings, arguments_of

HEAD = '''\
"""What the agents' constructors take as keywords, for type checkers and editors.

Written by `python -m rlgkd.scripts.config.docs` from the settings of the agents.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypedDict
'''


def document(cls: type, constructor: Callable[..., Any], settings: type[Settings]) -> None:
    """Give a class a signature and a docstring with the constructor's own arguments and its settings."""
    own = [p for p in inspect.signature(constructor).parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {name: setting for name, setting in settings.declared().items() if name not in settings.fixed_names()}
    defaults = settings().flat()
    keywords = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=source_of(setting.type)
        )
        for name, setting in taken.items()
    ]
    cls.__signature__ = inspect.Signature([*own[1:], *keywords])  # type: ignore[attr-defined]
    sentences = arguments_of(inspect.getdoc(constructor) or "")
    sentences.pop("**settings", None)
    sentences |= {name: setting.sentence for name, setting in taken.items()}
    wrapped = (
        textwrap.fill(f"{name}: {sentence}", 116, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, sentence in sentences.items()
    )
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *wrapped])


def typed_dicts(kinds: dict[str, type[Settings]]) -> str:
    """The source of agents/_signature.py: a TypedDict for each name, the first one the base of the others."""
    base, blocks = "", []
    known: set[str] = set()
    for name, settings in kinds.items():
        fields = [
            f"    {key}: {source_of(setting.type)}" for key, setting in settings.declared().items() if key not in known
        ]
        known |= {*settings.declared()}
        opening = f"class {name}({base or 'TypedDict'}, total=False):"
        blocks.append("\n".join([opening, f'    """Keywords of {settings.owner}."""', "", *fields, ""]))
        base = base or name
    return "\n\n".join([HEAD, *blocks])


def source_of(annotation: Any) -> str:
    """A type as source, without ranges.

    Examples:
        >>> source_of(Annotated[int, "1 or more"] | None), source_of(Literal["a", "b"]), source_of(tuple[int, ...])
        ('int | None', 'Literal["a", "b"]', 'Sequence[int]')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is types.NoneType:
        return "None"
    if origin is Annotated:
        return source_of(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(source_of, arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(json.dumps, arguments))}]"
    if origin is tuple:
        return f"Sequence[{source_of(arguments[0])}]"
    if origin is not None:  # a function of the remaining progress
        return "Callable[[float], float]"
    return str(annotation.__name__)
