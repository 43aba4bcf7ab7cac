"""The errors that rlgkd raises on purpose: each names the field, the value and the remedy in one line.

Every kind is also the standard type that a caller would expect, so `except ValueError` works. The command line prints
these errors as one line and exits with 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from rlgkd.secret_masks import masked


class RlgkdError(Exception):
    """Base of every error that the user can fix: one line that names the field, the value and the remedy."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field}: {masked(value)!r} does not work; {remedy}")


class SettingError(RlgkdError, ValueError):
    """A setting that is unknown, outside its range, or contradicts another."""


class ModelError(RlgkdError, ValueError):
    """A model that is missing, damaged, or does not fit the other models (another vocabulary, too short a context)."""


class DataError(RlgkdError, ValueError):
    """Prompts that are missing, empty, too long or malformed."""


class RewardError(RlgkdError, RuntimeError):
    """A reward that fails for too many samples; `__cause__` is the first failure."""


class TrainingError(RlgkdError, RuntimeError):
    """A step of training that cannot be taken, such as a gradient that is not finite."""


class CheckpointError(RlgkdError, RuntimeError):
    """A checkpoint or run folder that is missing, damaged, in use, or could not be written."""


class DependencyError(RlgkdError, RuntimeError):
    """An optional package that is not installed."""


def one_line(text: object, longest: int | None = None) -> str:
    """Return a text, or the message of an exception, on one line; cut at `longest` characters if that is given."""
    return " ".join(str(text).split())[:longest]
