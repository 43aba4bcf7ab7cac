"""How a setting that was changed between two parts of a run reads, on the console and in the report."""

from __future__ import annotations

import json
from typing import Final

from rlgkd.errors import one_line

LONGEST_VALUE: Final = 60
"""Characters of a value that are shown."""


def change_text(setting: object, old: object, new: object, tokens: str) -> str:
    """Return one line on a change of a setting between values of JSON, after this number of tokens.

    Examples:
        >>> change_text("alpha", 0.5, 0.25, "1,200")
        'alpha: 0.5 -> 0.25 after 1,200 tokens'
    """
    before, after = (one_line(json.dumps(value), LONGEST_VALUE) for value in (old, new))
    return f"{setting}: {before} -> {after} after {tokens} tokens"
