"""One live line in a terminal: how far, how much longer, then the most important numbers, as many as have room."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

BAR_WIDTH = 6
RESERVED = BAR_WIDTH + len(" 100% 12:34:56 ")
"""Terminal columns that the bar, the percentage and the remaining time take."""


def live_line(console: Console, *, quiet: bool) -> Progress:
    """Return the line, not yet started; with `quiet` it shows nothing."""
    return Progress(
        BarColumn(bar_width=BAR_WIDTH),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=quiet,
    )


def cut_to_width(pieces: Sequence[str], console: Console, separator: str = "  ") -> str:
    """Join as many of the pieces, in order, as the line has room for; the first one always.

    Examples:
        >>> cut_to_width(["reward 0.512", "length 13.2"], Console(width=40))
        'reward 0.512'
    """
    room = console.width - RESERVED
    text = "".join(pieces[:1])
    for piece in pieces[1:]:
        if len(text) + len(separator) + len(piece) > room:
            break
        text += separator + piece
    return text
