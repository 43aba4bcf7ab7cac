"""YAML as settings are written in it: safe, each key once, and with the numbers and booleans of YAML 1.2.

PyYAML reads YAML 1.1, in which `0120` is 80, `1:30` is 90, `yes` is true, and `1e-1` is a text.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_DEPTH = 64
MAX_VALUES = 1_000_000
"""Limits of what a YAML text may hold, aliases written out."""
_TAG = "tag:yaml.org,2002:"
_DIGITS = "-+.0123456789"
_FORMS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", _DIGITS),
    ("float", r"[-+]?([0-9][0-9_]*(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+", _DIGITS),
    ("float", r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _DIGITS),
)
"""Kind, form and first characters of a value that is no text."""
_OF_YAML_1_1 = ("bool", "float", "int", "timestamp", "value")


class _Loader(yaml.SafeLoader):
    """Reads numbers and booleans as YAML 1.2 has them, dates as texts, and refuses a key that stands there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = None if key_node.tag == f"{_TAG}merge" else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue
            if key in seen:
                twice = f"key {key!r} stands there twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, twice, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        try:
            return int(text, 16 if text.startswith("0x") else 10)
        except ValueError as error:  # more digits than Python reads
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Quotes a text that looks like a number or a boolean in either version, so that it is read as a text again."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag.removeprefix(_TAG) not in _OF_YAML_1_1]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
for _class in (_Loader, _Dumper):
    for _kind, _form, _first in _FORMS:
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_form})$"), list(_first))


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises: yaml.YAMLError, also for what is nested too deeply, is too large, or holds itself.

    Examples:
        >>> load_yaml("{a: 1e-1, b: 2E3, c: '1e-1', d: 1e, e: 0120, f: yes}")
        {'a': 0.1, 'b': 2000.0, 'c': '1e-1', 'd': '1e', 'e': 120, 'f': 'yes'}
    """
    depth = 0
    for event in yaml.parse(text, _Loader):  # without recursion, which PyYAML's loading has
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep")
    found = yaml.load(text, _Loader)
    _check_size(found)
    return found


def dump_yaml(values: Any) -> str:
    """Return the values as YAML that `load_yaml` reads back."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False))


def _check_size(found: Any) -> None:
    """Raise yaml.YAMLError for more than the limits; a value that holds itself by an alias has no end."""
    open_values, seen = [(found, 0)], 0
    while open_values:
        value, depth = open_values.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise yaml.YAMLError("it is nested too deeply, too large, or holds itself by an alias")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | set | tuple) else ()
        open_values += [(one, depth + 1) for one in inner]
