"""YAML as settings are written in it: safe, and with numbers such as `1e-1`, which YAML 1.2 has and PyYAML does not."""

from __future__ import annotations

import re
from typing import Any

import yaml

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")
"""With an exponent, as YAML 1.2's core schema has it; PyYAML, which reads YAML 1.1, wants a point and a sign too."""


class _Loader(yaml.SafeLoader):
    """Reads such a number as one."""


class _Dumper(yaml.SafeDumper):
    """Quotes a text that looks like such a number, so that it is read as a text again."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises: yaml.YAMLError.

    Examples:
        >>> load_yaml("{a: 1e-1, b: 2E3, c: '1e-1', d: 1e}")
        {'a': 0.1, 'b': 2000.0, 'c': '1e-1', 'd': '1e'}
    """
    return yaml.load(text, _Loader)


def dump_yaml(values: Any) -> str:
    """Return the values as YAML that `load_yaml` reads back."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False))
