"""What docs/internals.md links to is there: each link names a class, function or method of the file that it opens."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs/internals.md"
LINKS = sorted(set(re.findall(r"\[([^\]]+)\]\((\.\./[^)]+\.py)\)", PAGE.read_text())))


def defined_names(source: str) -> set[str]:
    """Functions and classes of a module, and the classes' methods as `Class.method`."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("name", "path"), LINKS)
def test_each_link_opens_the_file_that_defines_its_name(name: str, path: str) -> None:
    file = PAGE.parent / path
    assert file.is_file()
    if re.fullmatch(r"[\w.]+", name):  # else it is a sentence's words
        assert name in defined_names(file.read_text())


def test_one_update_has_twelve_lines() -> None:
    _, section = PAGE.read_text().split("## One update in twelve lines\n")
    section, *_ = section.split("\n## ")
    assert re.findall(r"^\| (\d+) \|", section, re.MULTILINE) == [str(line) for line in range(1, 13)]
