"""One live line in a terminal: how far, how much longer, then what matters most, as much of it as has room."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

BAR = 6
BESIDE = BAR + len(" 100% 12:34:56 ")
"""Columns of a line that its words do not have."""


def bar(console: Console, *, quiet: bool) -> Progress:
    """The line; with `quiet` there is none."""
    return Progress(
        BarColumn(bar_width=BAR), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False), console=console, disable=quiet,
    )  # fmt: skip


def fitting(pieces: Sequence[str], console: Console, between: str = "  ") -> str:
    """As many of the pieces, in their order, as a line has room for beside its bar; the first one always.

    Example:
        >>> fitting(["reward 0.512", "length 13.2"], Console(width=40))
        'reward 0.512'
    """
    room, text = console.width - BESIDE, "".join(pieces[:1])
    for piece in pieces[1:]:
        if len(text) + len(between) + len(piece) > room:
            break
        text += between + piece
    return text
