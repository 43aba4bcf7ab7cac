"""The errors that rlgkd raises on purpose: each names the field, the value and the remedy in one line.

Every kind is also the standard type that a caller would expect, so `except ValueError` works. The command line prints
these errors as one line and exits with 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from rlgkd.secret_masks import masked

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that change the direction of a text."""
MAX_KEYS = 5
"""Rows that one message names."""
MAX_LISTED = 60
"""Known names that one message lists."""
MAX_VALUE = 500
"""Characters of a value that a message shows."""


class RlgkdError(Exception):
    r"""Base of every error that the user can fix: one line that names the field, the value and the remedy.

    Examples:
        >>> module = type("Module", (), {"__repr__": lambda self: "Two(\n  lines)"})()
        >>> print(SettingError("model", module, "give a name"))
        model: Two( lines) does not work; give a name
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        text = re.sub(r"\s*\n\s*", " ", repr(masked(value)))  # such as that of a module, which has many lines
        if len(text) > MAX_VALUE:
            text = f"{text[:MAX_VALUE]}..."
        super().__init__(shown(f"{field}: {text} does not work; {remedy}"))


class SettingError(RlgkdError, ValueError):
    """A setting that is unknown, outside its range, or contradicts another."""


class ModelError(RlgkdError, ValueError):
    """A model that is missing, damaged, or does not fit the other models (another vocabulary, too short a context)."""


class DataError(RlgkdError, ValueError):
    """Prompts that are missing, empty, too long or malformed."""


class TooLongError(DataError):
    """A prompt that is longer than its limit, or that the model's context has no room for."""

    def __init__(self, field: str, value: object, remedy: str, tokens: int = 0) -> None:
        super().__init__(field, value, remedy)
        self.tokens = tokens
        """How long it is; 0 where that is not known."""


def in_one_message(errors: Sequence[tuple[str, DataError]], seen: int, hint: str = "") -> DataError:
    """Return the error that stands for several of `seen` rows: the first one, how many there are, and the first keys.

    Examples:
        >>> errors = [(f"x:{n}", DataError("prompt", f"x:{n}", "it is empty")) for n in range(7)]
        >>> print(in_one_message(errors, 9))
        prompt: 'x:0' does not work; it is empty. 7 of 9 rows cannot be used: 'x:0', 'x:1', 'x:2', 'x:3', 'x:4', ...
        >>> print(in_one_message([(key, TooLongError("prompt", key, "it is long", 50)) for key in "ab"], 9))
        prompt: 'a' does not work; it is long. 2 of 9 rows cannot be used: 'a', 'b'; the longest has 50 tokens
    """
    first = errors[0][1]
    remedy = first.remedy
    if len(errors) > 1:
        shown = [*[repr(key) for key, _ in errors[:MAX_KEYS]], *["..."] * (len(errors) > MAX_KEYS)]
        remedy += f". {len(errors)} of {seen} rows cannot be used: {', '.join(shown)}"
        if longest := max(error.tokens if isinstance(error, TooLongError) else 0 for _, error in errors):
            remedy += f"; the longest has {longest} tokens"
    return type(first)(first.field, first.value, remedy + hint)


class RewardError(RlgkdError, RuntimeError):
    """A reward that fails for too many samples; `__cause__` is the first failure."""


class TeacherError(RlgkdError, RuntimeError):
    """A served teacher that fails for too many texts; `__cause__` is the first failure."""


class SamplerError(RlgkdError, RuntimeError):
    """A served sampler that fails for too many texts, or samples from another policy than the student's."""


class TrainingError(RlgkdError, RuntimeError):
    """A step of training that cannot be taken, such as a gradient that is not finite."""


class CheckpointError(RlgkdError, RuntimeError):
    """A checkpoint or run folder that is missing, damaged, in use, or could not be written."""


class ProcessError(RlgkdError, RuntimeError):
    """Another process of a job of several has failed, or is gone."""

    def __init__(self, field: str, value: object, remedy: str, *, reported: bool = False) -> None:
        """Take also whether the other process reports what happened, so that this one need not."""
        super().__init__(field, value, remedy)
        self.reported = reported


class DependencyError(RlgkdError, RuntimeError):
    """An optional package that is not installed."""


def shown(text: str) -> str:
    r"""Return a text with escapes in the place of control characters other than tab and newline.

    A terminal obeys such characters: they move its cursor, change its title, or hide what stands before them.

    Examples:
        >>> print(shown("a\x1b[31mb\tc"))
        a\x1b[31mb	c
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: object, longest: int | None = None) -> str:
    """Return a text, or the message of an exception, on one line; cut at `longest` characters if that is given."""
    return " ".join(str(text).split())[:longest]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the question after the known name that is near a name; empty if none is.

    Examples:
        >>> did_you_mean("gpro", ["grpo", "ppo"])
        "did you mean 'grpo'?"
    """
    near = difflib.get_close_matches(name, [*known], n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def unknown_remedy(name: object, known: Iterable[str]) -> str:
    """Return the advice for an unknown name: the nearest known name, if one is near, and all known names.

    Of more than MAX_LISTED names only those that are near.
    """
    choices = sorted(known)
    wanted = str(name).lower().replace("-", "_")
    if len(choices) > MAX_LISTED:
        some = difflib.get_close_matches(wanted, choices, n=MAX_KEYS, cutoff=0.3)
        listed = f"of {len(choices)} known ones the nearest: {', '.join(some)}" if some else f"{len(choices)} are known"
        listed += "; rlgkd list has all"
    else:
        listed = f"known: {', '.join(choices)}" if choices else "none is taken here"
    question = did_you_mean(wanted, choices)
    return f"{question} {listed}" if question else listed
