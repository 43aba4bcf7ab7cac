"""What holds for every test: no network, and one thread, for the models are so small that more get in the way."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background shell ignores it, for its children too
    signal.signal(signal.SIGINT, signal.default_int_handler)
