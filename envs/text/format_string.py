"""A text with names in braces, `Question: {question}`; a brace of the text's own is doubled.

It knows names and nothing else: it cannot reach an object's attributes, and braces in a value stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from rlgkd.errors import SettingError

NAME = r"\w[\w -]*"
PLACE = re.compile(rf"\{{\{{|\}}\}}|\{{({NAME})\}}|[{{}}]")


class Braces:
    """The text, the names in it, and the names that it only spells out."""

    def __init__(self, field: str, text: str) -> None:
        """Read the text of this setting.

        Raises: SettingError for a brace that holds no name.
        """
        places = list(PLACE.finditer(text))
        for place in places:
            if place[0] in "{}":
                raise SettingError(field, text, "write {name} with a plain name in it, and {{ or }} for a brace itself")
        self.text = text
        self.names = tuple(dict.fromkeys(place[1] for place in places if place[1]))
        spelt = [
            text[one.end() : other.start()] for one, other in pairwise(places) if (one[0], other[0]) == ("{{", "}}")
        ]
        self.spelt = tuple(name for name in spelt if re.fullmatch(NAME, name))
        """Names in doubled braces: `{{name}}` writes `{name}`."""

    def fill(self, value_of: Callable[[str], str]) -> str:
        """The text with a value for each name.

        Example:
            >>> Braces("prompt", "Q: {question} {{x}}").fill({"question": "1 + {x}?"}.get)
            'Q: 1 + {x}? {x}'
        """
        return PLACE.sub(lambda place: value_of(place[1]) if place[1] else place[0][0], self.text)
