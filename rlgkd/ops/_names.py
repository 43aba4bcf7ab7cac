"""Choosing one of several functions by its name, with an error that says which name was probably meant."""

import difflib
from collections.abc import Iterable

from rlgkd.errors import SettingError


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
