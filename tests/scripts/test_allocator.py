"""Memory that is freed is kept: a large block is of the heap, and the heap is as large after it as with it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, torch
from rlgkd.scripts.allocator import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena _1 _2 _3 mapped _4 _5 _6 _7 _8".split()]

info = ctypes.CDLL(None).mallinfo2
info.restype = Info
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = info()
block = torch.ones(2**22)  # 16 MiB
there = info()
del block
after = info()
held = [now.arena + now.mapped for now in (before, there, after)]
print(held[1] - held[0], held[2] - held[1])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc, or one before 2.33")
@pytest.mark.parametrize(("way", "kept"), [("given back", False), ("kept", True)])
def test_a_block_that_is_freed_stays_with_the_process(way, kept):
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
    taken, change = map(int, done.stdout.split())
    assert taken >= 2**24 - 2**20  # some may have been there
    assert (change == 0) == kept
