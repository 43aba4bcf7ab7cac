"""Calls a user's function other than a reward: what it raises is one line, and the process stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rlgkd.envs.rewards.user_errors import describe_failure
from rlgkd.errors import RlgkdError, SettingError
from rlgkd.global_state import restored_state

T = TypeVar("T")


def call_user(field: str, name: str, function: Callable[..., T], *arguments: Any, remedy: str = "fix it there") -> T:
    """Return what the function returns.

    Args:
        field: The setting that names the function.
        name: What the setting's value is called in the error.
        function: The user's.
        arguments: Its arguments.
        remedy: What to do about an exception.

    Raises: SettingError, with the function's file and line, for an exception or an exit; RlgkdError as it comes.
    """
    try:
        with restored_state():
            return function(*arguments)
    except RlgkdError:
        raise
    except (Exception, SystemExit) as error:
        raise SettingError(field, name, f"it raised {describe_failure(error, function)}; {remedy}") from error
