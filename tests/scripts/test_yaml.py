"""YAML as settings have it: version 1.2's numbers and booleans, each key once, nothing without end."""

from __future__ import annotations

import pytest
import yaml

from rlgkd.scripts._yaml import dump_yaml, load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0120", 120),
        ("-07", -7),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("0x1f", 31),
        ("yes", "yes"),
        ("TRUE", True),
        ("2024-01-02", "2024-01-02"),
        (".5e1", 5.0),
        ("{no: 1}", {"no": 1}),
        ("{a: &x {b: 1}, c: {<<: *x, b: 2}}", {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """PyYAML's own 0120 is 80, its 1:30 is 90, and its key `no` is false."""
    assert load_yaml(text) == value and type(load_yaml(text)) is type(value)
    assert load_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize(
    "text", ["0120", "09", "1:30", "yes", "off", "0x1f", "1e5", "2024-01-02", "=", "~", "1.", ".5"]
)
def test_a_text_that_looks_like_something_else_stays_one(text: str) -> None:
    assert load_yaml(dump_yaml([text])) == [text]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{a: 1, 'a': 2}", "twice"),
        ("a: {b: 1, b: 2}", "twice"),
        ("&a [*a]", "holds itself"),
        ("[" * 3000, "nested"),
        ("[" * 70 + "]" * 70, "nested"),
        ("9" * 5000, "digits"),
        ("!!python/name:os.system", "constructor"),
    ],
)
def test_what_has_two_meanings_or_no_end_is_refused(text: str, why: str) -> None:
    with pytest.raises(yaml.YAMLError, match=why):
        load_yaml(text)


def test_aliases_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(yaml.YAMLError, match="too large"):
        load_yaml("\n".join(lines))
