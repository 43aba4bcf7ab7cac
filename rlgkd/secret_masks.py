"""Masks what looks like a secret wherever settings are written; names of environment variables are kept.

What looks like one: user and password of an address, the values of a query's `key`, `token` and their like, headers
such as `Authorization`, and settings such as `api_key`. Anything else is written as it is.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
"""Stands in the place of a secret."""
VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")
"""`$NAME` or `${NAME}`; `$$` is a dollar sign."""
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[-_])(?:api[-_]?key|authorization|cookie|password|passwd|secret|access[-_]?token)$"
)
_SECRET_HEADER = re.compile(r"(?i)auth|cookie|key|passw|secret|token")
_SECRET_QUERY = re.compile(r"(?i)([?&](?:[\w.-]{0,80}(?:key|token|secret|passw|auth|sig)[\w.-]{0,80})=)([^&#\s\"']+)")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,80}://)([^/?#\s@]+)@")
_SCHEME = re.compile(r"(?i)^\s*(?:bearer|basic|token)\s+")


def masked(value: Any) -> Any:
    """Return plain settings with a mask for each secret; those that name an environment variable are kept."""
    return _masked(value, _SECRET_NAME, "")


def _masked(value: Any, names: re.Pattern[str], name: str) -> Any:
    if type(value) is dict:
        inside = _SECRET_HEADER if name == "headers" else _SECRET_NAME
        return {key: _masked(one, inside, str(key)) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_masked(one, names, name) for one in value)
    if not isinstance(value, str):
        return value
    if names.search(name):
        return _hidden(value)
    value = _USER.sub(lambda found: f"{found[1]}{':'.join(map(_hidden, found[2].split(':', 1)))}@", value)
    return _SECRET_QUERY.sub(lambda found: found[1] + _hidden(found[2]), value)


def _hidden(text: str) -> str:
    """The mask, unless the text is made of variables alone, after a word such as Bearer."""
    scheme = _SCHEME.match(text)
    rest = text[scheme.end() :] if scheme else text
    return text if not VARIABLE.sub("", rest).strip() else f"{scheme[0] if scheme else ''}{MASK}"
