"""How fast are two processes of one thread against one process of two threads? Prints pairs, and where the time goes.

    PYTHONPATH=.:tests python tests/agents/ranks_speed.py [embedded | smollm2] [PAIRS]

One after the other, on the same texts: an update of 64 texts of the embedded models (the recipe quickstart), or of 32
texts of SmolLM2-135M, which is its own frozen teacher. Two cores have to be free.

In two processes everything that is of a process stands twice: the step of the optimizer, and the weights that are read
for each token. `exchange` is all that waits for the other process, also because that one has more to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tiny
import torch
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from rlgkd.ranks import join, leave
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs.train import build_agent

WORKLOADS: dict[str, tuple[list[str], int]] = {
    "embedded": (["prompts_per_update=32", "group_size=2"], 8),
    "smollm2": (
        [
            "env=rlgkd/DocstringSummary-v0",
            "student=smollm2-135m",
            "teacher=smollm2-135m",
            "prompts_per_update=8",
            "group_size=4",
            "learning_rate=1e-5",
            "precision=float32",
            "token_budget=5120",
        ],
        3,
    ),
}
"""Settings over quickstart's, and the updates that are measured, after one that is not."""
PARTS = ("sampling", "update", "optimizer", "exchange")


@contextmanager
def timed(where: Any, name: str, spent: dict[str, float], part: str) -> Iterator[None]:
    """Add up the seconds in a function while it is replaced."""
    function: Callable[..., Any] = getattr(where, name)

    def measured(*inputs: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*inputs, **named)
        finally:
            spent[part] += time.perf_counter() - began

    with patch.object(where, name, measured):
        yield


class Stops(BaseCallback):
    """Ends training after so many updates."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.left = updates + 1

    def _on_rollout_start(self) -> None:
        self.left -= 1

    def _on_step(self) -> bool:
        return self.left >= 0


def measure(workload: str) -> None:
    """Train in this process or in this one of two; the first prints the seconds of an update, part by part."""
    settings, updates = WORKLOADS[workload]
    ranks = join()
    threads = f"threads={2 // ranks.size}"
    agent = build_agent(read("quickstart", [*settings, threads, "gradient_norms_every=0", "agreement_every=0"]))
    rows, spent = tiny.Rows(), dict.fromkeys(PARTS, 0.0)
    agent.set_logger(Logger(None, [rows]))
    agent.learn(1)
    with (
        timed(agent.policy.optimizer, "step", spent, "optimizer"),
        timed(dist, "all_gather_object", spent, "exchange"),
        timed(dist, "all_reduce", spent, "exchange"),
    ):
        agent.learn(10**9, callback=Stops(updates), reset_num_timesteps=False)
    measured = rows.rows[1 : 1 + updates]
    found = {name: float(np.median([row[f"time/{name}"] for row in measured])) for name in ("sampling", "update")}
    found |= {name: spent[name] / updates for name in ("optimizer", "exchange")}
    if ranks.main:
        print(json.dumps(found), flush=True)
    leave()


def run(workload: str, processes: int) -> dict[str, float]:
    """The seconds of an update in so many processes."""
    command = [
        sys.executable,
        *(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []),
        __file__,
        workload,
        "0",
    ]
    threads = {**os.environ, "OMP_NUM_THREADS": str(2 // processes)}
    out = subprocess.run(command, env=threads, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(out.strip().splitlines()[-1])
    return found


def main(workload: str, pairs: int) -> None:
    """Run the pairs and print them."""
    print(f"{torch.__version__}, {os.cpu_count()} cores, {Path(__file__).name} {workload} {pairs}")
    ratios = []
    for _ in range(pairs):
        one, two = run(workload, 1), run(workload, 2)
        for name, found in (("one process, two threads", one), ("two processes", two)):
            print(f"{name:26}", *(f"{part} {found[part]:6.3f} s" for part in PARTS), flush=True)
        ratios.append((one["sampling"] + one["update"]) / (two["sampling"] + two["update"]))
        print(f"speed of two processes against one: {ratios[-1]:.2f}", flush=True)
    print(f"median of {pairs} pairs: {np.median(ratios):.2f}")


if __name__ == "__main__":
    name, number = (*sys.argv[1:], *("embedded", "3")[len(sys.argv) - 1 :])[:2]
    main(name, int(number)) if int(number) else measure(name)
