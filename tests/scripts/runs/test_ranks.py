"""`rlgkd train` in two processes: one folder, the texts of one process, any number of processes to go on with."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from on_request import minutes
from safetensors.torch import load_file

from rlgkd import checkpoint

SMALL = (
    "agent=Reinforce",
    "tokens=900",
    "prompts_per_update=4",
    "group_size=4",
    "eval_prompts=4",
    "checkpoint_every=1",
    "learning_rate=0.001",
    "eval_every=300",
    "eval_every_prompts=4",
    "keep_best=rouge2",
    "stages=[{alpha: 1, until: 0.5}, {alpha: 0.3}]",
)
"""Some updates of 16 texts, in two stages, with evaluations on the way."""
LONGER = "tokens=1500"
"""Some updates more."""
COMMAND = [sys.executable, "-m", "rlgkd.scripts", "train"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", *COMMAND[2:]]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=280, env=ENV)


def texts(out: Path) -> list[tuple[str, int, str]]:
    lines = map(json.loads, (out / "rollouts.jsonl").read_text().splitlines())
    return [(line["key"], line["sample"], line["completion"]) for line in lines]


def numbers(out: Path) -> list[list[float]]:
    return table(out / "progress.csv")


def table(path: Path) -> list[list[float]]:
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    return [[float(value) for value in row if value] for row in rows]


def contents(out: Path) -> dict[str, bytes]:
    names = ("progress.csv", "rollouts.jsonl", "model/model.safetensors", "evaluations.csv", "best/model.safetensors")
    return {name: (out / name).read_bytes() for name in names}


@minutes
def test_two_processes_write_one_run_with_the_texts_of_one_process_and_either_number_goes_on(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = run(COMMAND, "quickstart", "--out", str(one), "--quiet", *SMALL)
    both = run(TWO, "quickstart", "--out", str(two), "--quiet", *SMALL)
    assert alone.returncode == both.returncode == 0, both.stderr
    assert "1 process," in alone.stderr and both.stderr.count("2 processes,") == 1
    assert both.stdout.strip() == str(two / "report.html")
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert texts(one) == texts(two)
    summaries = [json.loads((out / "summary.json").read_text()) for out in (one, two)]
    assert summaries[0]["before"] == summaries[1]["before"]  # evaluated to the bit alike
    assert summaries[0]["stages"] == summaries[1]["stages"] and len(summaries[0]["stages"]) == 2
    assert summaries[0]["held_out"] == summaries[1]["held_out"] and summaries[0]["held_out"]["evaluations"] > 2
    rows = [table(out / "evaluations.csv") for out in (one, two)]
    assert rows[0][0] == rows[1][0]
    for ours, theirs in zip(*rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    updates = len(numbers(one))
    assert updates > 2
    for ours, theirs in zip(numbers(one), numbers(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)

    back = run(COMMAND, "--resume", str(two), "--quiet", LONGER)
    forth = run(TWO, "--resume", str(one), "--quiet", LONGER)
    assert back.returncode == forth.returncode == 0, forth.stderr
    assert texts(one) == texts(two) and len(numbers(one)) == len(numbers(two)) > updates
    weights, others = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    assert all((weights[name] - others[name]).abs().max() < 1e-4 for name in weights)


def test_what_one_process_refuses_ends_both_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import os\n\n\ndef reward(completions):\n"
        "    if os.environ['RANK'] == '1':\n        raise OSError('no disk')\n    return [1.0] * len(completions)\n"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "A farm"}\n{"prompt": "A school"}\n' * 8)
    settings = (
        "env=rlgkd/Dataset-v0",
        "student=embedded:grounded-student",
        "alpha=0",
        "eval_prompts=1",
        "prompts_per_update=64",
        "env_settings.split_shares=null",
        "env_settings.max_new_tokens=4",
        "env_settings.max_prompt_tokens=16",
        f"env_settings.data={tmp_path / 'prompts.jsonl'}",
        f"env_settings.reward={tmp_path / 'failing.py'}:reward",
    )
    began = time.monotonic()
    failed = run(TWO, "quickstart", "--out", str(tmp_path / "out"), "--quiet", *settings)
    assert time.monotonic() - began < 120  # far below process_timeout
    assert failed.returncode != 0
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("rlgkd: ")]
    assert "reward: " in line and "no disk" in line and "raised on rank 1 of 2" in line


FAILING = """
import os
import resource
import time
from pathlib import Path


def reward(completions):
    if os.environ["RANK"] == os.environ["FAILS"] and [*Path(os.environ["OUT"]).glob("checkpoints/step-*")]:
        if os.environ["HOW"] == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # a checkpoint's tensors are larger
        else:
            time.sleep(10_000)
    return [float(len(text)) for text in completions]
"""
"""A reward with which something breaks after the first checkpoint: the disk of a process, or the process hangs."""


@pytest.mark.parametrize(
    ("how", "fails", "sharding"),
    [
        ("disk", 1, "full checkpoint_format=sharded"),
        pytest.param("disk", 0, "none", marks=minutes),
        pytest.param("disk", 0, "full", marks=minutes),
        pytest.param("disk", 0, "full checkpoint_format=sharded", marks=minutes),
        *(pytest.param("hang", rank, "full", marks=minutes) for rank in (0, 1)),
        pytest.param("hang", 0, "none", marks=minutes),
    ],
)
def test_a_full_disk_or_a_process_that_hangs_ends_all_in_a_line_and_the_run_goes_on(
    tmp_path: Path, how: str, fails: int, sharding: str
) -> None:
    out = tmp_path / "out"
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "A farm"}\n{"prompt": "A school"}\n' * 8)
    settings = (
        "env=rlgkd/Dataset-v0",
        "student=embedded:grounded-student",
        "teacher=null",
        "alpha=0",
        "eval_prompts=1",
        "prompts_per_update=2",
        "group_size=2",
        "env_settings.split_shares=null",
        "env_settings.max_new_tokens=4",
        "env_settings.max_prompt_tokens=16",
        "tokens=48",
        "checkpoint_every=1",
        "process_timeout=0.2",
        f"env_settings.data={tmp_path / 'prompts.jsonl'}",
        f"env_settings.reward={tmp_path / 'failing.py'}:reward",
        *f"sharding={sharding}".split(),
    )
    env = {**ENV, "FAILS": str(fails), "HOW": how, "OUT": str(out)}
    command = [*TWO, "quickstart", "--out", str(out), "--quiet", *settings]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    assert failed.returncode != 0
    lines = [line for line in failed.stderr.splitlines() if line.startswith("rlgkd: ")]
    print(*lines, sep="\n")
    assert 1 <= len(lines) <= 2, failed.stderr
    assert "rlgkd/checkpoint" not in failed.stderr  # torchrun has a traceback of its own
    if how == "disk":
        assert any("checkpoint" in line and "File too large" in line and str(out) in line for line in lines)
    else:
        assert any("did not answer within process_timeout" in line for line in lines)
    assert [*out.glob("checkpoints/.*")] == [] and checkpoint.latest(out / "checkpoints") is not None
    again = subprocess.run(
        [*TWO, "--resume", str(out), "--quiet"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**env, "FAILS": "none"},
    )
    assert again.returncode == 0, again.stderr
    assert len(texts(out)) >= 12


def test_a_command_of_one_process_refuses_several_in_one_line(tmp_path: Path) -> None:
    compare = [*TWO[:-1], "compare", "--out", str(tmp_path / "out")]
    failed = run(compare)
    lines = [line for line in failed.stderr.splitlines() if line.startswith("rlgkd: ")]
    assert failed.returncode != 0 and len(lines) == 1 and "rlgkd compare is one process" in lines[0]
    assert not (tmp_path / "out").exists()


KILLS = int(os.environ.get("RLGKD_KILLS", "3"))


@minutes
@pytest.mark.parametrize("kill", range(KILLS))
def test_a_run_of_two_with_one_killed_ends_at_once_and_goes_on_to_the_bit(
    tmp_path: Path, wholes: Callable[[str], Path], kill: int
) -> None:
    """RLGKD_KILLS=20 kills as often, either process at a moment of its own; every third run has its weights sharded."""
    out, other, sharding = tmp_path / "killed", tmp_path / "other", "full" if kill % 3 == 2 else "none"
    whole, moment = wholes(sharding), random.Random(kill).uniform(0.0, 6.0)
    launcher = subprocess.Popen(
        [*TWO, "quickstart", "--out", str(out), "--quiet", *SMALL, LONGER, f"sharding={sharding}"],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not (out / "rollouts.jsonl").exists():
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    ranks = children(launcher.pid)
    assert len(ranks) == 2
    time.sleep(moment)
    running = not (out / "summary.json").exists()
    with contextlib.suppress(ProcessLookupError):
        os.kill(ranks[kill % 2], signal.SIGKILL)
    began = time.monotonic()
    while any(map(runs, [*ranks, launcher.pid])) and time.monotonic() < began + 60:
        time.sleep(0.01)
    launcher.wait(timeout=1)
    took, updates = time.monotonic() - began, len((out / "rollouts.jsonl").read_text().splitlines()) // 16
    how = "killed" if running else "it had ended"
    print(f"sharding={sharding}, {moment:.2f} s after the start, in update {updates}: {how}, gone after {took:.1f} s")
    assert took < 10
    shutil.copytree(out, other)
    again, alone = run(TWO, "--resume", str(out), "--quiet"), run(COMMAND, "--resume", str(other), "--quiet")
    assert again.returncode == alone.returncode == 0, again.stderr + alone.stderr
    assert contents(out) == contents(whole)
    assert texts(other) == texts(whole)


@minutes
@pytest.mark.parametrize("group", [False, True], ids=["one", "all, twice, as a scheduler and torchrun do"])
def test_a_signal_stops_both_at_a_whole_update_and_the_run_goes_on_to_the_bit(
    group: bool, tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "stopped"
    launcher = subprocess.Popen(
        [*TWO, "quickstart", "--out", str(out), "--quiet", *SMALL, LONGER],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(out.glob("checkpoints/step-*")):
        time.sleep(0.02)
    ranks = children(launcher.pid)
    for rank in ranks if group else ranks[1:]:  # one of the two alone: both must hear
        os.kill(rank, signal.SIGTERM)
    if group:
        time.sleep(0.15)
        launcher.terminate()
    _, printed = launcher.communicate(timeout=100)
    assert launcher.returncode != 0 and printed.count("stopped; go on with: rlgkd train --resume") == 1
    again = run(TWO, "--resume", str(out), "--quiet")
    assert again.returncode == 0, again.stderr
    assert contents(out) == contents(whole)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By `sharding`, a run of two processes that was never stopped."""

    @cache
    def whole(sharding: str) -> Path:
        out = tmp_path_factory.mktemp("ranks") / "whole"
        done = run(TWO, "quickstart", "--out", str(out), "--quiet", *SMALL, LONGER, f"sharding={sharding}")
        assert done.returncode == 0, done.stderr
        return out

    return whole


@pytest.fixture(scope="module")
def whole(wholes: Callable[[str], Path]) -> Path:
    """One with whole copies of the weights."""
    return wholes("none")


def runs(process: int) -> bool:
    """Whether a process is there, and not only its number until somebody asks how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(parent: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ids."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent:
                found.append(int(folder.name))
    return sorted(found)
