"""Memory that is freed is kept: asked for again, it brings no page that the system has to clear."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from rlgkd.scripts.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for round in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = torch.ones(2**22)  # 16 MiB
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_block_that_is_freed_and_asked_for_again_is_not_cleared_by_the_system():
    def faults(*arguments: str) -> int:
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = 2**24 // 4096
    assert faults("given back") > 20  # huge pages, where the system has them, are few
    assert faults("kept") < pages / 1000
