"""Runs of some six updates, which tests begin, stop, kill and resume in their own process."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlgkd import checkpoint
from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.scripts.config.reading import dump, read
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.fit import fit
from rlgkd.scripts.runs.rewind import rewind
from rlgkd.scripts.runs.stopping import stoppable

SMALL = [
    "agent=Reinforce",
    "tokens=300",
    "prompts_per_update=2",
    "group_size=2",
    "eval_prompts=2",
    "threads=1",
    "learning_rate=0.003",
    "env_settings.max_new_tokens=16",
    "checkpoint_every=2",
]
"""Some six updates."""


def go_on(out: Path, *changes: str, settings: RunConfig | None = None) -> None:
    """Train from where the folder has come to the end, without what stands around it."""
    console = Console(stderr=True)
    settings = read(out / "config.yaml", changes) if settings is None else settings
    agent = train.build_agent(settings)
    found = rewind(settings, agent, out, console)
    with stoppable("the same again", console) as stop:
        fit(settings, agent, out, stop, found, agent.teacher, quiet=True, console=console)


def begin(out: Path, *more: str) -> None:
    settings = read("quickstart", [*SMALL, *more])
    out.mkdir()
    (out / "config.yaml").write_text(dump(settings))
    go_on(out, settings=settings)


def begin_and_end(out: Path, *more: str, end: Callable[[], None], update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a run that `end` ends before it trains on the texts of an update, counted from 0."""
    descend = TextAlgorithm.train

    def ends(agent: TextAlgorithm) -> None:
        if agent.state.updates == update:
            end()
        descend(agent)

    with monkeypatch.context() as patched:
        patched.setattr(TextAlgorithm, "train", ends)
        with pytest.raises((SystemExit, MemoryError)):
            begin(out, *more)


def trained(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("progress.csv", "rollouts.jsonl", "model/model.safetensors")}


def outcome(out: Path) -> dict[str, Any]:
    newest = checkpoint.latest(out / "checkpoints")
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    files = ("evaluations.csv", "best/model.safetensors", "best/best.json")
    return {
        **trained(out),
        **{name: (out / name).read_bytes() for name in files},
        **{name: (newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")},
        "state": [state[name] for name in ("training", "run", "guards", "training_rewards")],
    }


def evaluations(out: Path) -> list[dict[str, float]]:
    with (out / "evaluations.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def crash() -> None:
    raise MemoryError("as if it was killed: no checkpoint is written any more")
