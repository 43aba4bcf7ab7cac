"""How the modules of a room import each other: no circle anywhere, and in envs no long chains.

Import-linter's contracts say which room may import which. This test reads the sources and so also sees imports inside
functions, where a circle would hide.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlgkd"
ROOMS = ("rlgkd.envs", "rlgkd.agents", "rlgkd.scripts")


def find_modules() -> Iterator[tuple[str, Path]]:
    """All modules of rlgkd by name; the rooms are behind symbolic links, which Path.rglob does not follow."""
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py":
                parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
                yield ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(find_modules())


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules of rlgkd that one imports, anywhere in its source."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = absolute(package, node)
            names = [f"{source}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else source for name in names}
    return frozenset(found & MODULES.keys() - {module})


def absolute(package: str, node: ast.ImportFrom) -> str:
    """The module that an import statement names, relative ones resolved."""
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def room_of(module: str) -> str:
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), "the core")


def longest_chain(room: str) -> list[str]:
    """The longest chain of imports inside a room, each module importing the next one.

    Raises: ValueError if there is a circle, which is a chain without end.
    """
    chains: dict[str, list[str]] = {}

    def chain_from(module: str, importers: list[str]) -> list[str]:
        if module in importers:
            raise ValueError(" > ".join([*importers[importers.index(module) :], module]))
        if module not in chains:
            inside = sorted(name for name in imports_of(module) if room_of(name) == room)
            below = [chain_from(name, [*importers, module]) for name in inside]
            chains[module] = [module, *max(below, key=len, default=[])]
        return chains[module]

    return max((chain_from(module, []) for module in sorted(MODULES) if room_of(module) == room), key=len)


@pytest.mark.parametrize("room", ["the core", *ROOMS])
def test_no_room_imports_in_a_circle(room: str) -> None:
    longest_chain(room)


def test_chains_of_imports_in_envs_are_at_most_nine_modules_long() -> None:
    chain = longest_chain("rlgkd.envs")
    assert len(chain) <= 9, " > ".join(chain)


def test_a_circle_through_an_import_inside_a_function_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from rlgkd.agents import b\n")
    (tmp_path / "b.py").write_text("def f():\n    from rlgkd.agents.a import g\n")
    for name in "ab":
        monkeypatch.setitem(MODULES, f"rlgkd.agents.{name}", tmp_path / f"{name}.py")
    with pytest.raises(ValueError, match=r"rlgkd\.agents\.a > rlgkd\.agents\.b > rlgkd\.agents\.a"):
        longest_chain("rlgkd.agents")
