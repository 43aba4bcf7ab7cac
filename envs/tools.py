"""Python functions as tools: their schemas, the calls that a policy writes, and what is answered to these.

A call is `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as many chat models write it, several of them in
one turn at will; or the JSON alone as the whole turn (`parameters` for `arguments` is understood too). A call that
fails costs nothing but the turn: the policy reads why. A tool is a function without state, which should limit its own
time and size.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError, validate_call
from transformers.utils.chat_template_utils import get_json_schema

from rlgkd.errors import SettingError, one_line
from rlgkd.imports import import_object, is_import_path

CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
FAILED = "Error: "
"""The beginning of the answer to a call that failed."""
MAX_ERROR = 200
"""Characters of an error that the policy reads."""


class Tools:
    """Typed functions that a policy may call by text."""

    def __init__(self, functions: Sequence[Callable[..., Any] | str]) -> None:
        """Take functions, or their import paths, with type hints and a docstring that describes each argument.

        Raises: SettingError for something else.
        """
        self.schemas: list[Mapping[str, Any]] = []
        self._functions: dict[str, Callable[..., Any]] = {}
        for given in functions:
            function = import_object("tools", given) if isinstance(given, str) and is_import_path(given) else given
            if not callable(function) or inspect.iscoroutinefunction(function):
                raise SettingError("tools", given, "give typed functions that are not async, or their import paths")
            try:
                schema = get_json_schema(function)
                called = validate_call(function)
            except Exception as error:  # of many kinds: of docstrings, of type hints, of pydantic
                remedy = "give it type hints and a docstring with an Args section"
                raise SettingError("tools", str(given), f"{one_line(error, MAX_ERROR)}; {remedy}") from error
            name = schema["function"]["name"]
            if name in self._functions:
                raise SettingError("tools", name, "two tools have this name; rename one")
            self.schemas.append(schema)
            self._functions[name] = called

    def answer(self, turn: str) -> str | None:
        """Return the results of a turn's calls, a line or more for each; None if it calls nothing."""
        results = [self._result(call) for call in calls_of(turn)]
        return "\n".join(results) if results else None

    def _result(self, call: str) -> str:
        try:
            given = json.loads(call)
            name, arguments = given["name"], given["arguments" if "arguments" in given else "parameters"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            function = self._functions.get(name)
            if not isinstance(arguments, Mapping):
                raise TypeError("arguments must be an object")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            return f'{FAILED}a call is {{"name": ..., "arguments": {{...}}}} in JSON ({one_line(error, MAX_ERROR)})'
        if function is None:
            return f"{FAILED}there is no tool {name!r:.40}; there are: {', '.join(self._functions)}"
        try:
            result = function(**arguments)
            return result if isinstance(result, str) else json.dumps(result, default=str)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return f"{FAILED}{'.'.join(map(str, first['loc']))}: {one_line(first['msg'], MAX_ERROR)}"
        except (Exception, SystemExit) as error:
            return f"{FAILED}{type(error).__name__}: {one_line(error, MAX_ERROR)}"


def call_of(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as a policy should write it.

    Examples:
        >>> call_of("add", {"a": 1})
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    """
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def calls_of(turn: str) -> list[str]:
    """Return the calls in a turn, each as the JSON that was written.

    Examples:
        >>> calls_of('I add. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
        ['{"name": "add", "arguments": {"a": 1}}']
    """
    calls = [call.strip() for call in CALL.findall(turn)]
    if calls:
        return calls
    try:
        given = json.loads(turn)
    except (ValueError, RecursionError):
        return []
    is_call = isinstance(given, dict) and "name" in given and ("arguments" in given or "parameters" in given)
    return [turn] if is_call else []


def tool_counts(turns: Sequence[str]) -> dict[str, float]:
    """Return how many calls of an episode were answered, and how many lines of the answers begin with `Error: `.

    Examples:
        >>> tool_counts(['<tool_call>{"name": "ad"}</tool_call>', "Error: there is no tool 'ad'", "3"])
        {'tool_calls': 1.0, 'tool_errors': 1.0}
    """
    answered = turns[: len(turns) - 1 : 2]
    lines = [line for answer in turns[1::2] for line in answer.splitlines()]
    return {
        "tool_calls": float(sum(len(calls_of(turn)) for turn in answered)),
        "tool_errors": float(sum(line.startswith(FAILED) for line in lines)),
    }
