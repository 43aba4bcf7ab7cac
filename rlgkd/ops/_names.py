"""Choosing one of several functions by its name, with an error that says which name was probably meant."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from rlgkd.errors import SettingError

Pairwise = Callable[[Tensor, Tensor], Tensor]
"""A function of the teacher's and the student's logits."""


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
