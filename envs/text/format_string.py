"""A text with names in braces, `Question: {question}`; doubled braces stand for braces of the text itself.

Only names are filled in, and what a dotted name means is the caller's: a format string cannot reach an object's
attributes. Braces in a value stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from rlgkd.errors import SettingError

NAME = r"\w[\w -]*(?:\.\w[\w -]*)*"
BRACES = re.compile(rf"\{{\{{|\}}\}}|\{{({NAME})\}}|[{{}}]")
"""A doubled brace, a name in braces, or a brace that is neither."""


class FormatString:
    """The text, the names in it, and the names in doubled braces."""

    def __init__(self, field: str, text: str) -> None:
        """Read the text of the setting `field`.

        Raises: SettingError for a brace that holds no name.
        """
        found = list(BRACES.finditer(text))
        for match in found:
            if match[0] in "{}":
                raise SettingError(field, text, "write {name} with a plain name in it, and {{ or }} for a brace itself")
        self.text = text
        self.names = tuple(dict.fromkeys(match[1] for match in found if match[1]))
        doubled = [
            text[left.end() : right.start()] for left, right in pairwise(found) if (left[0], right[0]) == ("{{", "}}")
        ]
        self.doubled_names = tuple(name for name in doubled if re.fullmatch(NAME, name))
        """Names in doubled braces, which are not filled in: `{{name}}` gives `{name}`."""

    def fill(self, value_of: Callable[[str], str]) -> str:
        """Return the text with a value for each name.

        Examples:
            >>> FormatString("prompt", "Q: {question} {{x}}").fill({"question": "1 + {x}?"}.get)
            'Q: 1 + {x}? {x}'
        """
        return BRACES.sub(lambda match: value_of(match[1]) if match[1] else match[0][0], self.text)
