"""A time limit interrupts a call in the main thread, and never ends the process."""

from __future__ import annotations

import subprocess
import sys

SIGNAL_DURING_SIGNAL = """
from rlgkd import time_limit

time_limit.AGAIN = 0.1


def deaf():
    text = "x" * 10**8
    return len(text.encode().replace(b"x", b"yy"))


try:
    time_limit.call_within(0.005, deaf, warn=lambda line: None)
except TimeoutError as error:
    print(error)
"""


def test_a_signal_that_is_sent_before_the_last_one_is_dealt_with_does_not_end_the_process() -> None:
    # A call into C hears no signal, so the next one is sent as soon as it returns: in the same moment.
    done = subprocess.run([sys.executable, "-c", SIGNAL_DURING_SIGNAL], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "it took longer than 0.005 seconds\n"), done.stderr
