"""Lines on the terminal: a text is never markup or an emoji of rich, and its control characters are shown, not sent."""

from __future__ import annotations

import logging

from rich.console import Console

from rlgkd.errors import shown


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it stands, on one line however long."""
    console.print(shown(text), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


class ShownFormatter(logging.Formatter):
    """Formats log records for a terminal: a reward's exception or a model's name may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text with its control characters as escapes."""
        return shown(super().format(record))
