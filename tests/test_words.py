"""Source and documentation use one word for one idea: retired words stay out of both.

A word is found as a part of a name too: `told_of`, `Aside`. A phrase in which it is ordinary English, or data, is
allowed file by file. A section "Words" of CONTRIBUTING.md may list the retired words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

RETIRED = {
    "told": "raised, reported, known, given",
    "aside": "in the background",
    "beside": "next to, with, in addition to",
    "anew": "again",
    "behind": "after, following",
    "mend(?:s|ed|ing)?": "fix",
    "whoever": "the ... that",
    "(?-i:As of)": "as for, see, current",
    "thin products?": "a matrix product of few rows",
    "wide products?": "a matrix product of many rows",
    "companions?": "co-sampler, teacher",
    "guide[sd]?": "teacher",
    "laid out": "prepacked",
    r'(?-i:(?<=""")Of|(?<=: )Of)(?= )': "a noun first: the weights of ..., that of ...",
}
"""Each word, as a pattern, and what to say instead."""
RETIRED_IN_LM = {"turned": "rotated (rotary position embedding)"}

ALLOWED: dict[str, tuple[str, ...]] = {}
"""File -> phrases in which a retired word is ordinary English or data."""

ROOMS = {
    "rlgkd": ("rlgkd/*.py",),
    "rlgkd/ops": ("rlgkd/ops/**/*.py",),
    "rlgkd/checkpoint": ("rlgkd/checkpoint/**/*.py",),
    "rlgkd/lm": ("rlgkd/lm/**/*.py",),
    "envs": ("envs/**/*.py",),
    "agents": ("agents/**/*.py",),
    "scripts": ("scripts/**/*.py",),
    "docs": ("docs/*.md", "README.md", "CONTRIBUTING.md"),
}


def findings(text: str, words: Mapping[str, str], allowed: Iterable[str] = ()) -> list[tuple[int, str, str]]:
    """(line number, what stands there, what to say instead) of each retired word outside the allowed phrases."""
    for phrase in allowed:
        text = text.replace(phrase, "\n" * phrase.count("\n"))
    found = []
    for word, instead in words.items():
        for match in re.finditer(rf"(?<![a-z])(?i:{word})(?![a-z])", text):
            found.append((text.count("\n", 0, match.start()) + 1, match[0], instead))
    return sorted(found)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_no_retired_word(room: str) -> None:
    words = RETIRED | (RETIRED_IN_LM if room == "rlgkd/lm" else {})
    found = []
    for pattern in ROOMS[room]:
        files = sorted(ROOT.glob(pattern))
        assert files, f"no file matches {pattern}"
        for file in files:
            name = file.relative_to(ROOT).as_posix()
            text = file.read_text()
            section = re.search(r"^## Words$.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
            allowed = [*ALLOWED.get(name, ()), *([section[0]] if section and name == "CONTRIBUTING.md" else [])]
            found += [f"{name}:{line}: {word!r}, say {new}" for line, word, new in findings(text, words, allowed)]
    if found:
        pytest.fail("\n".join([f"{len(found)} retired words:", *found]), pytrace=False)


def test_the_table_of_words_names_none_that_is_not_looked_for() -> None:
    section = re.search(r"^## Words$.*?(?=^## )", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section
    table = [line for line in section[0].splitlines() if line.startswith("| ")]
    last = [line.rstrip(" |").rpartition("|")[2] for line in table if not line.endswith("| |")][2:]
    words = [word.strip() for column in last for word in column.split(",")]
    assert len(words) > 9 and [word for word in words if not findings(word, RETIRED | RETIRED_IN_LM)] == []


def test_each_allowed_phrase_is_still_there() -> None:
    for name, phrases in ALLOWED.items():
        text = (ROOT / name).read_text()
        for phrase in phrases:
            assert phrase in text and findings(phrase, RETIRED), f"{name}: {phrase}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it is told", ["told"]),
        ("def told_of(self):", ["told"]),
        ("class Aside(Generic[Told]): ...", ["Aside", "Told"]),
        ("it was mended and guided by guides", ["guided", "guides", "mended"]),
        ("besides, we recommend to amend a guideline in a folder", []),
        ("as of now. As of `Policy`.", ["As of"]),
        ("laid out once, thin products", ["laid out", "thin products"]),
        ('"""Of the text."""\nseed: Of all. It is one: of many. Of course.', ["Of", "Of"]),
    ],
)
def test_words_are_found_in_names_and_with_their_endings(text: str, words: list[str]) -> None:
    assert [word for _, word, _ in findings(text, RETIRED)] == words


def test_an_allowed_phrase_hides_its_word_alone() -> None:
    text = "a tour guide\n\na guide"
    assert [line for line, _, _ in findings(text, RETIRED, allowed=["tour guide"])] == [3]
