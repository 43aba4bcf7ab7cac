"""Stop strings: a text ends as soon as it contains one, wherever in a token the string begins or ends.

They are searched in the text as the tokenizer decodes it, without special tokens unless these are shown. A string may
also be a special token, which ends a text even where it is not shown. The text that counts ends before the first of
them (as in vLLM and OpenAI's API); the token that completed it may hold more, and stays an action.

To decode the whole text after every token would be slow. So a token is inspected once for the text that it adds, and
most tokens cannot complete a stop string. After one that can, a few tokens are decoded, and the whole text only if they
hold one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rlgkd.errors import SettingError
from rlgkd.lm.text_format import special_tokens

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Tokenizers decode the bytes of an incomplete character to it."""


class StopStrings:
    """The stop strings of a tokenizer's texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Any, *, skip_special_tokens: bool = True) -> None:
        """Take a string or several, and whether texts are without special tokens.

        Raises: SettingError if one is not a string, is empty, or is more than a special token that no text has.
        """
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        given = [strings] if isinstance(strings, str) else strings
        if not isinstance(given, Sequence) or not all(isinstance(string, str) and string for string in given):
            raise SettingError("stop", strings, "give a string or a list of strings, none of them empty")
        self.strings = tuple(given)
        special = special_tokens(tokenizer)
        self._special_ids = {id_ for id_, token in special.items() if token in self.strings}
        for string in self.strings:
            held = [token for token in special.values() if token in string]
            if held and string not in held and skip_special_tokens:
                remedy = (
                    f"texts hold no special tokens such as {held[0]!r}; give that token alone, or set "
                    "skip_special_tokens to false"
                )
                raise SettingError("stop", string, remedy)
        self._longest = max(map(len, self.strings), default=0)
        self._pieces: dict[int, _Piece] = {}

    def should_stop(self, ids: Sequence[int]) -> bool:
        """Return whether the last token completes a stop string; the tokens before it must hold none."""
        if not self._piece(ids[-1]).may_complete:
            return False
        if ids[-1] in self._special_ids:
            return True
        # Go back by the longest string's length. A string that ends in the last token begins less far before it; the
        # character more is for decoders that drop a space at the beginning.
        start = len(ids) - 1
        length = 0
        while start and length < self._longest:
            start -= 1
            length += self._piece(ids[start]).min_length
        return self._contains_any(self.text(ids[start:])) and self._contains_any(self.text(ids))

    def truncate(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids up to the first one that completes a stop string; all if none does."""
        candidates = (n for n, token in enumerate(ids, 1) if self._piece(token).may_complete)
        return next((ids[:n] for n in candidates if self.should_stop(ids[:n])), ids)

    def text(self, ids: Sequence[int]) -> str:
        """The decoded text, in which special tokens are shown unless they are skipped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=self.skip_special_tokens))

    def text_before_stop(self, text: str) -> str:
        """The text before its first stop string."""
        starts = [start for start in map(text.find, self.strings) if start >= 0]
        return text[: min(starts, default=len(text))]

    def _contains_any(self, text: str) -> bool:
        return any(string in text for string in self.strings)

    def _piece(self, token: int) -> _Piece:
        if token not in self._pieces:
            self._pieces[token] = self._inspect(token)
        return self._pieces[token]

    def _inspect(self, token: int) -> _Piece:
        if token in self._special_ids:
            return _Piece(min_length=0, may_complete=True)
        # Decoded after itself too: at the beginning of a text decoders drop a space, or show how a piece is marked.
        alone = self.text([token])
        twice = self.text([token, token])
        if REPLACEMENT in twice or not twice.startswith(alone):
            return _Piece(min_length=0, may_complete=True)  # what it adds depends on its neighbours
        piece = twice.removeprefix(alone)
        may_complete = self._contains_any(alone) or any(_can_complete(string, piece) for string in self.strings)
        return _Piece(min_length=len(piece), may_complete=may_complete)


class _Piece(NamedTuple):
    """What a token adds to a text."""

    min_length: int
    """In characters."""
    may_complete: bool
    """Whether a stop string could end in it."""


def _can_complete(string: str, piece: str) -> bool:
    """Return whether the piece holds the string, or begins with an end of it."""
    return string in piece or any(string.endswith(piece[:n]) for n in range(1, min(len(string), len(piece) + 1)))
