"""The house is as CONTRIBUTING.md says: files of one idea, a tree that names each of them, an order in each folder."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("rlgkd", "envs", "agents", "scripts")
MOST_LINES = 320
ONE_IDEA = {
    "agents/agent.py": "one class: an agent as its user meets it, from the constructor's arguments to save and load",
    "agents/algorithm.py": "one update from prompts to the optimizer's step, read from top to bottom",
    "envs/task.py": "one class, of whose lines a hundred are its arguments and what they mean",
    "envs/text/encoder.py": "one class: prompts, replies and conversations share what a chat template puts around them",
    "rlgkd/objective.py": "Eq. 5: its derivation, its knobs and its loss stand next to each other",
    "rlgkd/ops/divergence.py": "eight functions of one form, each with its closed gradient, range, source and example",
    "rlgkd/types.py": "what the rooms exchange, in one place, since each of them imports it",
}
"""Source files above MOST_LINES -> the one idea that needs them."""
TABLES = {
    "agents/contradictions.py": "rules: a setting, when it is wrong, what to do",
    "agents/sampler_settings.py": "such rules",
    "agents/teacher_checks.py": "such rules",
    "rlgkd/objective.py": "such rules",
    "envs/tasks/docstrings.py": "names of packages",
    "envs/tasks/translate.py": "words of numbers and months",
    "scripts/runs/teach.py": "names of settings",
}
"""Files with `# fmt: skip` -> the tables in them."""


def sources() -> list[str]:
    """The modules of the four rooms, by their path in the repository; the links in rlgkd/ are not followed."""
    found = []
    for room in ROOMS:
        for folder, _, files in os.walk(ROOT / room):
            found += [Path(folder, file).relative_to(ROOT).as_posix() for file in files if file.endswith(".py")]
    return sorted(path for path in found if "/assets/" not in path or path.startswith("scripts/"))


def test_a_source_file_is_short_or_says_which_one_idea_needs_it() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert {path for path, lines in lengths.items() if lines > MOST_LINES} == ONE_IDEA.keys()


def test_contributing_gives_the_same_reasons() -> None:
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
    for path, reason in ONE_IDEA.items():
        assert f"`{path}`: {reason}" in text


def listed() -> set[str]:
    """The modules that the tree in CONTRIBUTING.md names, by their path in the repository."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## The rooms\n")[1].split("\n## ")[0]
    found: set[str] = set()
    for section in text.split("\n### ")[1:]:
        room, *lines = section.splitlines()
        folders = [(0, room.partition("/")[0])]
        for line in lines:
            if not (match := re.match(r"( {4,})(\S.*)", line)):
                continue
            indent = len(match[1])
            while folders[-1][0] >= indent:
                folders.pop()
            if opens := re.match(r"(\w+)/ ", match[2]):
                folders.append((indent, opens[1]))
            found |= {"/".join([*(name for _, name in folders), file]) for file in re.findall(r"\w+\.py\b", match[2])}
    return found


def test_the_tree_names_every_module_and_none_that_is_gone() -> None:
    commands = {path for path in sources() if re.fullmatch(r"scripts/[a-z]\w*\.py", path) and _is_thin(ROOT / path)}
    modules = {path for path in sources() if Path(path).name not in ("__init__.py", "__main__.py")}
    named = listed()
    assert sorted(modules - commands - named) == []
    files = {Path(path).name for path in sources()}
    assert sorted(path for path in named if Path(path).name not in files) == []


def _is_thin(file: Path) -> bool:
    """Whether a file is a command: it calls another module and has nothing of its own."""
    return not re.search(r"^(def|class) ", file.read_text(), re.MULTILINE)


def test_each_package_has_an_order_of_imports_that_a_new_module_must_join() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    ordered = {container for one in contracts if one.get("exhaustive") for container in one["containers"]}
    packages = {
        ".".join([*(["rlgkd"] if path[:5] != "rlgkd" else []), *Path(path).parent.parts])
        for path in sources()
        if "/plugin/" not in path  # a package of its own, in vLLM's environment
    }
    assert packages == ordered


def test_formatting_is_left_to_the_formatter_but_for_tables() -> None:
    """The formatter would give each cell of a table a line of its own."""
    files = [path for room in (*ROOMS, "examples", "tests") for path in (ROOT / room).rglob("*.py")]
    skipping = {path.relative_to(ROOT).as_posix() for path in files if "# fmt: skip\n" in path.read_text()}
    assert skipping == TABLES.keys()
