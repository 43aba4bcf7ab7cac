"""Stop strings: a text ends as soon as it contains one, wherever in a token that begins or ends.

They are looked for in the text as the tokenizer decodes it, without special tokens. The text that counts ends before
the first of them (as with vLLM and OpenAI's API); the token that completed it may hold more, and stays an action.

After nearly every token there is nothing to do: what a token adds to a text is found out once, and most cannot complete
a stop string. Behind one that can, a few tokens are decoded, and the whole text where they hold a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlgkd.errors import SettingError

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""Stands for the bytes of a character that is not whole."""


class StopStrings:
    """The stop strings of a tokenizer's texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Any) -> None:
        """Take a string or several.

        Raises: SettingError for what is no string, an empty one, or one with a special token in it, which no text has.
        """
        self.tokenizer = tokenizer
        given = [strings] if isinstance(strings, str) else strings
        if not isinstance(given, Sequence) or not all(isinstance(string, str) and string for string in given):
            raise SettingError("stop", strings, "give a string or a list of strings, none of them empty")
        self.strings = tuple(given)
        for string in self.strings:
            if special := [token for token in tokenizer.all_special_tokens if token in string]:
                remedy = f"texts hold no special tokens such as {special[0]!r}; the end token ends them without it"
                raise SettingError("stop", string, remedy)
        self._longest = max(map(len, self.strings), default=0)
        self._pieces: dict[int, _Piece] = {}

    def should_stop(self, ids: Sequence[int]) -> bool:
        """Whether the last of these tokens completes a stop string; those before it hold none."""
        if not self._piece(ids[-1]).completes:
            return False
        start, known = len(ids) - 1, 0  # a string begins before the last token by less than its length,
        while start and known < self._longest:  # and one more: decoders drop the space in front of the first word
            start -= 1
            known += self._piece(ids[start]).length
        return self._within(self.text(ids[start:])) and self._within(self.text(ids))

    def truncate(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids up to the first that completes a stop string; all where none does."""
        places = (n for n, token in enumerate(ids, 1) if self._piece(token).completes)
        return next((ids[:n] for n in places if self.should_stop(ids[:n])), ids)

    def text(self, ids: Sequence[int]) -> str:
        """What the ids say."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def text_before_stop(self, text: str) -> str:
        """The text before its first stop string."""
        return text[: min((at for at in map(text.find, self.strings) if at >= 0), default=len(text))]

    def _within(self, text: str) -> bool:
        return any(string in text for string in self.strings)

    def _piece(self, token: int) -> _Piece:
        if token not in self._pieces:
            # Behind itself too, for at the beginning of a text decoders drop a space, or show how a piece is marked.
            alone, twice = self.text([token]), self.text([token, token])
            piece = twice.removeprefix(alone)
            if BROKEN in twice or not twice.startswith(alone):
                self._pieces[token] = _Piece(length=0, completes=True)  # who knows, until others stand around it
            else:
                completes = self._within(alone) or any(_meets(string, piece) for string in self.strings)
                self._pieces[token] = _Piece(length=len(piece), completes=completes)
        return self._pieces[token]


class _Piece(NamedTuple):
    """What a token adds to a text."""

    length: int
    """Characters, at least."""
    completes: bool
    """Whether a stop string could end in it."""


def _meets(string: str, piece: str) -> bool:
    """Whether the piece holds the string, or begins with the end of it."""
    return string in piece or any(string.endswith(piece[:n]) for n in range(1, min(len(string), len(piece) + 1)))
