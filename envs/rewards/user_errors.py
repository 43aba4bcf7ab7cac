"""Describes a failure of a user's function in one line: the exception, and where in that function it came from."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlgkd import scoring, time_limit
from rlgkd.errors import one_line
from rlgkd.secret_masks import masked

MAX_MESSAGE = 300
"""Characters of an exception's message that are shown."""
OWN_FILES = (
    Path(__file__).with_name("grader.py"),
    Path(__file__).with_name("async_calls.py"),
    Path(__file__).with_name("returned.py"),
    Path(__file__).parent.with_name("user_calls.py"),
    Path(__file__).parent.with_name("data"),
    Path(scoring.__file__),
    Path(time_limit.__file__),
    Path(asyncio.__file__).parent,
    Path(concurrent.futures.__file__).parent,
)
"""Files and folders whose frames stand between the call of a user's function and the function itself."""
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
"""Frames whose names say nothing to a reader."""


def message_of(error: BaseException) -> str:
    """Return an exception's message on one line, its secrets masked; empty if it has none that can be had."""
    try:
        return str(masked(one_line(error, 4 * MAX_MESSAGE)))  # to mask a message of megabytes takes seconds
    except Exception:  # the user's own __str__
        return ""


def describe_failure(error: BaseException, function: Callable[..., Any]) -> str:
    """Return type and message of the exception with the file, line and name of the function it came from.

    The line is the deepest one in the file that was entered first. An exception without such a line, because it was
    returned and not raised or because it is about the function's result, gets the function's own first line.
    """
    message = message_of(error)
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}..."
    frames = traceback.extract_tb(error.__traceback__)
    # The first frame is the one that caught the exception.
    entered = [f for f in frames[1:] if not any(Path(f.filename).is_relative_to(path) for path in OWN_FILES)]
    if entered:
        own = [f for f in entered if f.filename == entered[0].filename]
        named = [f.name for f in own if f.name not in COMPREHENSIONS] or [own[-1].name]
        place = f"{own[-1].filename}:{own[-1].lineno}, in {named[-1]}"
    else:
        place = _definition(function)
    return f"{type(error).__name__}: {message} ({place})" if message else f"{type(error).__name__} ({place})"


def callable_names(functions: Sequence[object]) -> list[str]:
    """Return the names of functions or their import paths."""
    return [given if isinstance(given, str) else callable_name(given) for given in functions]


def callable_name(function: object) -> str:
    """Return a function's name, or the name of the type of a callable object."""
    return getattr(function, "__name__", type(function).__name__)


def _definition(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}, {code.co_name}" if code else repr(function)
