"""What holds for every test: no network, modules of its own, and one thread, for more are slower with small models."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background shell ignores it, for its children too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def modules_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget after each test what it imported from its folder: the projects of two tests both have a reward.py."""
    path = [*sys.path]
    yield
    sys.path[:] = path
    folders = str(tmp_path_factory.getbasetemp())
    for name, module in [*sys.modules.items()]:
        if str(vars(module).get("__file__")).startswith(folders):
            del sys.modules[name]
