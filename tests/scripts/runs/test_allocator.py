"""Freed memory is kept: a large block comes from the heap, which stays as large after the block is freed.

Each test runs in a process of its own, because the settings of the allocator cannot be undone.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

BLOCK = """
import ctypes, sys, torch
from rlgkd.scripts.runs.allocator import keep_freed_memory, keep_freed_memory_after_first

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena _1 _2 _3 mapped _4 _5 _6 _7 _8".split()]

info = ctypes.CDLL(None).mallinfo2
info.restype = Info

def allocate_and_free():
    before = info()
    block = torch.ones(2**22)  # 16 MiB
    during = info()
    del block
    after = info()
    held = [now.arena + now.mapped for now in (before, during, after)]
    print(held[1] - held[0], held[2] - held[1])
"""
ONE = """
if sys.argv[1] == "kept":
    assert keep_freed_memory()
allocate_and_free()
"""
LEARNING = """
from stable_baselines3.common.callbacks import BaseCallback
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.train import build_agent

class Probe(BaseCallback):
    def _on_rollout_start(self):
        allocate_and_free()

    def _on_step(self):
        return True

agent = build_agent(read("quickstart", ["prompts_per_update=2"]))
tokens = 3 * 2 * agent.config.sampling.group_size * agent.task.max_new_tokens
keep_freed_memory_after_first(agent.policy.optimizer)
agent.policy.optimizer.register_step_post_hook(lambda *_: None)  # a hook of somebody else's
agent.learn(tokens, callback=Probe())
allocate_and_free()
"""
HOLES = """
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
keep_freed_memory_after_first(optimizer, give_back_holes=sys.argv[1] == "given back")
optimizer.step()
blocks, stay = [], []
for _ in range(64):
    blocks.append(torch.ones(2**18))  # 1 MiB
    stay.append(torch.ones(2**10))
before = resident()
del blocks
optimizer.step()
print(before, before - resident())
"""
needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc, or one before 2.33")


def blocks(program, *arguments):
    """Return (bytes that the process gains while it holds a block, bytes that it gains by freeing it) of each block."""
    run = [sys.executable, "-c", BLOCK + program, *arguments]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]


@needs_glibc
@pytest.mark.parametrize(("way", "kept"), [("given back", False), ("kept", True)])
def test_a_block_that_is_freed_stays_with_the_process(way, kept):
    ((taken, change),) = blocks(ONE, way)
    assert taken >= 2**24 - 2**20  # some may have been there
    assert (change == 0) == kept


@needs_glibc
def test_the_first_update_has_large_blocks_from_the_system_and_later_ones_keep_them():
    first, *later = (change for _, change in blocks(LEARNING))
    assert first <= -(2**24)
    assert len(later) >= 2
    assert not any(later)


@needs_glibc
@pytest.mark.parametrize(("way", "returned"), [("kept", False), ("given back", True)])
def test_each_later_step_gives_the_heap_s_holes_back_if_asked_to(way, returned):
    ((_, freed),) = blocks(HOLES, way)
    assert (freed > 48 * 2**20) == returned
