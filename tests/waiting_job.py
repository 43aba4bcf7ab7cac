"""A job for the tests of stopping, in a module that imports little: its process is forked from one that imported it."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from rlgkd.scripts.runs.stopping import stoppable


def wait_to_be_stopped(out: Path) -> None:
    """Save when it is asked to stop, as training does."""
    with stoppable("nothing", Console(stderr=True), second_ends=False) as stop, stop.at_whole_update():
        (out / "ready").touch()
        while stop.number is None:
            time.sleep(0.01)
        time.sleep(0.2)  # a signal that comes again must not end it
        (out / "saved").touch()
