"""Two processes train as one: the same texts, the same weights but for rounding, and equal to each other to the bit."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from safetensors.torch import load_file

from rlgkd import ranks
from rlgkd.errors import ProcessError
from rlgkd.ranks import ALONE, Ranks

TESTS = Path(rank_cases.__file__).parent
MOST = 2e-6
"""Relative L2 of the weights after some updates: rounding, of another order of summation."""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in two processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes have of every case."""
    folder = tmp_path_factory.mktemp("ranks") / "two"
    done = torchrun(str(TESTS / "rank_cases.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def of_rank(folder: Path, rank: int, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    number = [*rank_cases.CASES].index(name)
    file = folder / str(rank) / f"{number}.json"
    return json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))


def distance(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Relative L2 of all weights together."""
    apart = sum((ones[name] - others[name]).double().square().sum().item() for name in ones)
    return math.sqrt(apart / sum(value.double().square().sum().item() for value in ones.values()))


@pytest.mark.parametrize("name", rank_cases.CASES)
def test_two_processes_train_as_one(two: Path, tmp_path: Path, name: str) -> None:
    first, weights = of_rank(two, 0, name)
    second, same = of_rank(two, 1, name)
    assert first == second or repr(first) == repr(second)  # NaN of a metric is not equal to itself
    assert all(torch.equal(weights[key], same[key]) for key in weights)

    alone, expected = rank_cases.train(name, tmp_path)
    started = rank_cases.CASES[name](tmp_path).modules.state_dict()
    ours, theirs = json.loads(json.dumps(alone["updates"])), first["updates"]
    assert len(ours) == len(theirs) == rank_cases.UPDATES
    if name == "bfloat16":  # its rounding is large enough for another token, some updates later
        assert ours[0] == theirs[0] and distance(expected, weights) < 0.2 * distance(expected, started)
        return
    assert ours == theirs
    assert distance(expected, started) > 100 * MOST
    assert distance(expected, weights) < MOST
    for one, both in zip(alone["metrics"], first["metrics"], strict=True):
        assert one.keys() == both.keys()
        for metric, value in one.items():
            assert both[metric] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), metric


def test_both_processes_know_each_others_texts_of_the_teacher_and_one_writes_them(two: Path, tmp_path: Path) -> None:
    rank_cases.train("texts of the teacher", tmp_path)
    ours, theirs = ((folder / "texts.jsonl").read_text().splitlines() for folder in (tmp_path, two))
    assert len(ours) > 5 and sorted(ours) == sorted(theirs) and ours[0] == theirs[0]


def test_an_error_or_a_stop_on_one_process_ends_both(two: Path) -> None:
    first, second = (json.loads((two / str(rank) / "failures.json").read_text()) for rank in (0, 1))
    assert "OSError: no disk" in second["reward"] and "raised on rank 1 of 2" in second["reward"]
    assert first["reward"].startswith("ProcessError: rank: 1 does not work; it ended with RewardError: reward:")
    assert second["weights"].startswith("SettingError: student:")
    assert first["weights"].startswith("ProcessError: rank: 1 does not work; it ended with SettingError: student:")
    assert first["stop"] == second["stop"] and first["stop"].startswith("1 updates, [True, False],")
    assert second["nested"].startswith("ZeroDivisionError") and "it ended with ZeroDivisionError" in first["nested"]


def test_one_process_alone_changes_no_bit() -> None:
    values = torch.tensor([0.1, 0.2])
    weight = torch.nn.Parameter(torch.ones(2))
    ALONE.sum_gradients([weight])
    assert ALONE.sum(values) is values and ALONE.sum_numbers([0.1]) == [0.1] and weight.grad is None
    assert ALONE.gather(lambda: 3) == [3] and ALONE.from_main(lambda: 3) == 3 and ALONE.together(lambda: 3) == 3
    assert list(ALONE.share(3)) == [0, 1, 2] and ALONE.deal([1, 5, 2]) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError) as error:
        ALONE.gather(lambda: 1 / 0)
    assert not hasattr(error.value, "__notes__")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_are_whole_and_dealt_costs_are_even(size: int) -> None:
    ranks = [Ranks(rank, size) for rank in range(size)]
    assert [n for one in ranks for n in one.share(13)] == list(range(13))
    assert {len(one.share(13)) for one in ranks} <= {13 // size, 13 // size + 1}
    costs = [n * n % 37 + 1 for n in range(40)]
    dealt = [one.deal(costs) for one in ranks]
    assert sorted(n for one in dealt for n in one) == list(range(40)) and all(one == sorted(one) for one in dealt)
    sums = [sum(costs[n] for n in one) for one in dealt]
    assert max(sums) - min(sums) <= max(costs)
    assert Ranks(1, 2).deal([]) == [] and Ranks(1, 2).deal([4]) == []


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("RANK", "5"), ("WORLD_SIZE", "x"), ("MASTER_PORT", "x")])
def test_variables_that_are_no_jobs_are_one_error(monkeypatch, name, value):
    job = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", name: value}
    for variable, text in job.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ProcessError, match=r"rank: .*could not join the .* processes of its job.*torchrun"):
        ranks.join(timeout=0.02)
