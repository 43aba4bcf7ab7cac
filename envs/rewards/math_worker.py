"""The process in which math-verify works for mathematics.py: a line of JSON for each question, and one for each answer.

Run as a file, without the rest of rlgkd, so that it starts in a second.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from typing import Any

MOST_MEMORY = 4 * 2**30
"""Bytes that the process may address: a power of powers fills any memory."""


def answer(text: str) -> Any:
    """The expressions that a text answers with; empty if there are none."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        text,
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # the other process ends this one
        raise_on_error=True,
    )


def right_answer(text: str) -> Any:
    """Those of a reference, which may be a bare formula."""
    bare = not any(sign in text for sign in ("$", r"\(", r"\[", r"\boxed"))
    found = answer(f"${text}$" if bare else text)
    if not found:
        raise ValueError(f"the reference {text[:100]!r} is no mathematics")
    return found


def reward(completion: str, right: list[str]) -> float:
    """1.0 if the completion's answer is one of the right ones."""
    from math_verify import verify

    golds = [right_answer(text) for text in right]
    try:
        given = answer(completion)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # not a formula that can be read
        given = []
    return float(bool(given) and any(verify(gold, given, timeout_seconds=None, raise_on_error=True) for gold in golds))


def main() -> None:
    """Answer until the other side closes."""
    import math_verify  # noqa: F401  # before the first question, whose time is counted

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable()
    answers, sys.stdout = sys.stdout, sys.stderr  # what the package prints is no answer
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            found: dict[str, Any] = {"reward": reward(question["completion"], question["right"])}
        except Exception as error:
            found = {"failure": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
