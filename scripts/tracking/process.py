"""One tracker in a process of its own: reads calls as lines of JSON, makes them, and says how they went.

`python -m rlgkd.scripts.tracking.process NAME`. A tracker that raises, hangs, seeds a generator, prints or ends its
process can so do nothing to the training that sends the calls. Each line on the standard output is a JSON object:
`started`, with where the run can be seen; `failed`, the first exception; `ended`, with the numbers of calls and of
failures. What the library prints goes to the standard error, which is a file of the run's folder.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from rlgkd.errors import one_line
from rlgkd.scripts.tracking.libraries import make_tracker
from rlgkd.scripts.tracking.protocol import TrackedRun, Tracker

SECONDS_TO_END = 60.0
"""How long a tracker may take after the training's process has gone."""


class _Calls:
    """Makes the calls, counts them, and reports the first exception."""

    def __init__(self, tracker: Tracker, report: Callable[..., None]) -> None:
        self.tracker = tracker
        self.report = report
        self.made = self.failed = 0

    def make(self, call: Mapping[str, Any]) -> bool:
        """Make one call; whatever it raises is counted. Returns whether more can follow: not after a failed start."""
        self.made += 1
        kind: str = call["call"]
        content: Any = call["content"]
        try:
            if kind == "start":
                run = TrackedRun(**{**content, "folder": Path(content["folder"])})
                self.report(started=self.tracker.start(run))
            elif kind == "numbers":
                self.tracker.numbers(content, call["tokens"])
            elif kind == "texts":
                self.tracker.texts(content, call["tokens"])
            elif kind == "files":
                self.tracker.files([Path(path) for path in content])
            else:
                self.tracker.end(whole=content)
        except BaseException as error:
            traceback.print_exc()
            self.failed += 1
            if self.failed == 1:
                self.report(failed=f"{kind}: {type(error).__name__}: {one_line(error, 300)}")
            return kind != "start"
        return True


def main(name: str, calls: TextIO, answers: TextIO) -> None:
    """Serve one tracker until its end, or until the process that sends the calls has gone."""

    def report(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    made = _Calls(make_tracker(name), report)
    ended = False
    for line in calls:
        call = json.loads(line)
        ended = not made.make(call) or call["call"] == "end"
        if ended:
            break
    if not ended:
        watch = threading.Timer(SECONDS_TO_END, os._exit, [1])
        watch.daemon = True
        watch.start()
        made.make({"call": "end", "content": False})
    report(ended=made.made, failures=made.failed)


if __name__ == "__main__":
    # The answers get the standard output for themselves: a library that prints would break their lines.
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        main(sys.argv[1], sys.stdin, private)
    except BaseException as error:
        traceback.print_exc()
        private.write(json.dumps({"failed": f"{type(error).__name__}: {one_line(error, 300)}"}) + "\n")
    finally:
        private.flush()
        sys.stderr.flush()
        os._exit(0)  # threads that a library has left would keep the process
