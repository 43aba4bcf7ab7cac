"""What went wrong in a function of the user's, as one line: the exception, and where in that function it was raised."""

from __future__ import annotations

import asyncio
import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 300
"""Characters of an exception's message that are shown."""
BETWEEN = (Path(__file__).parent / "grader.py", Path(asyncio.__file__).parent)
"""What stands between rlgkd's call and the function."""
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
"""Frames that say nothing by their names."""


def describe_failure(error: Exception, function: Callable[..., Any]) -> str:
    """Type, message, and the file, line and name of the function.

    The line is the deepest of the file that was entered first; of an exception that was handed back and not raised, or
    a result that does not do, it is the function's own.
    """
    message = " ".join(str(error).split())
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
    frames = traceback.extract_tb(error.__traceback__)
    entered = [f for f in frames[1:] if not any(Path(f.filename).is_relative_to(path) for path in BETWEEN)]
    if entered:
        own = [f for f in entered if f.filename == entered[0].filename]
        named = [f.name for f in own if f.name not in COMPREHENSIONS] or [own[-1].name]
        place = f"{own[-1].filename}:{own[-1].lineno}, in {named[-1]}"
    else:
        place = _defined(function)
    return f"{type(error).__name__}: {message} ({place})" if message else f"{type(error).__name__} ({place})"


def _defined(function: Any) -> str:
    """Where a function, a method, or an object that is called is written down."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}, {code.co_name}" if code else repr(function)
