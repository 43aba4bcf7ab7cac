"""Lists what there is to name: `rlgkd list`.

What ships is read from catalogue.json, which `python -m rlgkd.scripts.config.docs` writes from the code: importing it
all takes seconds. What other packages register is added here.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym

import rlgkd  # noqa: F401 - registers the environments
from rlgkd.errors import SettingError, shown, unknown_remedy

CATALOGUE = Path(__file__).with_name("catalogue.json")
KINDS = {
    "settings": "of a run, and of an environment",
    "envs": "environments by id, with the names of their settings",
    "recipes": "published methods and embedded tasks, with what they set",
    "divergences": "how a student differs from its teacher",
    "advantages": "what rewards become",
    "behaviours": "who samples together with the student",
    "gates": "how much each token counts",
    "gaps": "what the sampled estimators reinforce",
    "rewards": "by name",
    "models": "that open without a path or a hub",
}
ENTRY_POINTS = {"rewards": "rlgkd.rewards", "gates": "rlgkd.gates"}
"""Where other packages register theirs; environments are in Gymnasium's registry."""
NAME_WIDTH = 30
"""Columns of a name, where none of the list is shorter."""


class Entry(NamedTuple):
    """A name; `note` is a default, or where the thing stands."""

    name: str
    note: str
    about: str

    def has(self, words: Sequence[str]) -> bool:
        """Whether all the words stand in it."""
        text = " ".join(self).lower()
        return all(word.lower() in text for word in words)


def show(what: str = "", words: Sequence[str] = ()) -> None:
    """Print the kinds, one kind, or the entries that hold all words, of one kind or of all.

    In a terminal a kind is a line for each entry, cut to its width. Entries that were searched for are whole, and so
    are those that go to a file or a pipe.

    Raises: SettingError if nothing is found.
    """
    if not what:
        for kind, about in KINDS.items():
            print(f"{kind:<12} {len(entries(kind)):>3}  {about}")
        print("\nrlgkd list KIND [WORD ...]; rlgkd list WORD searches them all")
        return
    searched = [*words] if what in KINDS else [what, *words]
    found = {kind: entries(kind) for kind in ([what] if what in KINDS else KINDS)}
    found = {kind: [entry for entry in all_ if entry.has(searched)] for kind, all_ in found.items()}
    if not any(found.values()):
        near = unknown_remedy(what, KINDS) if what not in KINDS else "give fewer words"
        raise SettingError("what", " ".join([what, *words]), f"no name and no sentence holds it; {near}")
    for kind, matches in found.items():
        if matches and what not in KINDS:
            print(f"{kind}:")
        _print(matches, whole=bool(searched))


def entries(kind: str) -> list[Entry]:
    """Return what there is of a kind: what ships, then what other packages and the running program have registered."""
    found = [Entry(*row) for row in json.loads(CATALOGUE.read_text())[kind]]
    names = {entry.name for entry in found}
    if group := ENTRY_POINTS.get(kind):
        found += [Entry(point.name, "", point.value) for point in entry_points(group=group) if point.name not in names]
    if kind == "envs" and _environments() - names:
        from rlgkd.scripts.config.catalogue import environments  # imports what they are made of

        found += [Entry(*made) for made in environments() if made.name not in names]
    return found


def _environments() -> set[str]:
    """The ids of text environments, as rlgkd.envs.registry finds them."""
    return {name for name, spec in gym.registry.items() if spec.entry_point == "rlgkd.envs.text_env:TextGenerationEnv"}


def _print(found: Sequence[Entry], *, whole: bool) -> None:
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns
    names = min(max((len(entry.name) for entry in found), default=0), NAME_WIDTH)
    for entry in found:
        note = f" [{entry.note}]" if entry.note else ""
        line = shown(f"{entry.name:<{names}}  {entry.about}{note}")
        if terminal and whole:
            line = textwrap.fill(line, width, subsequent_indent=" " * (names + 2))
        elif terminal:
            line = line if len(line) <= width else f"{line[: width - 4]} ..."
        print(line)
