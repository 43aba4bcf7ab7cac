"""Whether an answer in LaTeX equals the reference as mathematics, by the package math-verify.

Its parser reads what a policy wrote, and some expressions take for ever (`9^{9^{9^9}}`): so it works in a process of
its own, math_worker.py, which is ended when it is late and started again for the next text. Of the package's ways to
find an answer the one that reads plain text is left out, since it evaluates that text as Python.
"""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt

from rlgkd.envs.rewards.text import RightAnswers
from rlgkd.errors import DependencyError, one_line
from rlgkd.settings import checked_arguments
from rlgkd.time_limit import late

WORKER = Path(__file__).with_name("math_worker.py")
STARTING = 60.0
"""Seconds that a process may take to import the package."""


class Mathematics:
    """Compares the answer of each completion with its right answers; see `mathematics`."""

    needs_references = True
    """Without a reference there is nothing to compare with: a row that has none cannot be used."""

    def __init__(self, timeout: float) -> None:
        """Take the seconds for one completion."""
        self._timeout = timeout
        self._worker: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        """Ends the process, if there is one; also when this object goes."""

    def __call__(self, completions: Sequence[str], references: Sequence[RightAnswers]) -> list[float | Exception]:
        """1.0 or 0.0 for each completion, or why there is neither."""
        return [self._score(*pair) for pair in zip(completions, references, strict=True)]

    def _score(self, completion: str, reference: RightAnswers) -> float | Exception:
        right = [reference] if isinstance(reference, str) else [*reference]
        try:
            worker = self._worker if self._worker is not None and self._worker.poll() is None else self._start()
            found = _ask(worker, {"completion": completion, "right": right}, self._timeout)
        except BaseException as error:  # an interruption too: what the process answers later belongs to no question
            self._end()
            if not isinstance(error, TimeoutError | OSError):
                raise
            return error
        return float(found["reward"]) if "reward" in found else ValueError(one_line(found["failure"], 200))

    def _start(self) -> subprocess.Popen[bytes]:
        # -P, for the modules of WORKER's folder would hide those of Python that have the same names
        self._end()
        worker = subprocess.Popen([sys.executable, "-P", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._worker, self._end = worker, weakref.finalize(self, _end, worker)
        _answer(worker, STARTING)  # it has imported the package
        return worker


def _ask(worker: subprocess.Popen[bytes], question: dict[str, Any], seconds: float) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(question).encode() + b"\n")
    worker.stdin.flush()
    return _answer(worker, seconds)


def _answer(worker: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """The worker's next line. Raises: TimeoutError; OSError if it has ended."""
    assert worker.stdout is not None
    until = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([worker.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            raise late(seconds)
        part = worker.stdout.read1()  # type: ignore[attr-defined]  # a BufferedReader
        if not part:
            raise ChildProcessError(f"the process of math-verify ended with {worker.wait()}")
        line += part
    found: dict[str, Any] = json.loads(line)
    return found


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()


@checked_arguments
def mathematics(*, timeout: Annotated[float, Gt(0)] = 5.0) -> Mathematics:
    r"""1 if the completion's answer in LaTeX (`\boxed{...}`, `$...$`, `\(...\)`, `\[...\]`) equals the reference.

    Equal as mathematics: 1/2 and 0.5, a set in any order. The last `\boxed{...}` counts before other formulas; several
    next to each other are one set. Without LaTeX the completion earns 0; the reference may be without. It is exploited
    by guessing where few answers are likely, and by formulas that math-verify reads more kindly than a teacher would.

    Args:
        timeout: Seconds for one completion, after which its sample has failed.

    Raises: DependencyError if the package is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise DependencyError("reward", "mathematics", "install it: pip install 'rlgkd[math]'")
    return Mathematics(timeout)
