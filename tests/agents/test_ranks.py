"""Two processes train as one: the same texts, the same weights but for rounding, and equal to each other to the bit."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from on_request import minutes
from safetensors.torch import load_file

from rlgkd import checkpoint, ranks
from rlgkd.agents import PPO
from rlgkd.errors import CheckpointError, ProcessError, SettingError
from rlgkd.ranks import ALONE, Ranks
from rlgkd.sharding import clip_gradients, is_sharded, state_dict, whole

TESTS = Path(rank_cases.__file__).parent
MOST = 2e-6
"""Relative L2 of the weights after some updates: rounding, of another order of summation."""


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """A command in several processes of one thread each."""
    number = ["--nproc_per_node", str(processes)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *number, *arguments]
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


def gradient_of(trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take the gradient of the first step away from the weights that it stands with."""
    return {name: trained.pop(name) for name in [*trained] if name.startswith(rank_cases.GRADIENT)}


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
    gradient, summed = gradient_of(expected), gradient_of(weights)
    assert gradient and gradient.keys() == summed.keys()
    started = rank_cases.CASES[name](tmp_path).modules.state_dict()
    ours, theirs = json.loads(json.dumps(alone["updates"])), first["updates"]
    assert len(ours) == len(theirs) == rank_cases.UPDATES
    if name.endswith("bfloat16"):  # its rounding is large enough for another token, some updates later
        assert ours[0] == theirs[0] and distance(expected, weights) < 0.2 * distance(expected, started)
        return
    assert ours == theirs
    error = distance(gradient, summed)
    print(f"{name}: the first step's gradient differs by {error:.1e}")
    assert error < 1e-5
    apart, moved = distance(expected, weights), distance(expected, started)
    print(f"{name}: the weights have moved by {moved:.1e}, and differ by {apart:.1e}")
    assert moved > 100 * MOST
    assert apart < MOST
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
    for ours in (first, second):
        assert ours["sharded teachers"].startswith("SettingError: sharding: 'full' does not work; the teacher (several")
        assert ours["sharded predict"].startswith("SettingError: sharding: 'predict' does not work;")
    assert second["nested"].startswith("ZeroDivisionError") and "it ended with ZeroDivisionError" in first["nested"]


def test_sharded_processes_and_one_go_on_from_each_others_checkpoints(two: Path, tmp_path: Path) -> None:
    """2 processes with shards, then with whole copies, then with shards again; and one alone after them."""
    taken_over = json.loads((two / "0" / "relay.json").read_text())
    alone = rank_cases.relay(tmp_path, ("none",) * len(rank_cases.RELAY))
    assert json.loads(json.dumps(alone)) == taken_over and len(alone) == 3

    for name in ("model", "optimizer"):  # in one format, and what they hold is the same but for rounding
        last = f"step-3/{name}.safetensors"
        theirs, ours = load_file(two / "relay" / last), load_file(tmp_path / last)
        assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in ours.items()}
        assert distance(ours, theirs) < 10 * MOST  # second moments are squares
    agents = [folder / "agent" for folder in (two / "relay", tmp_path)]
    assert len({frozenset(path.name for path in agent.iterdir()) for agent in agents}) == 1
    assert len({(agent / "config.json").read_text() for agent in agents}) == 1
    assert distance(*(load_file(agent / "model.safetensors") for agent in agents)) < MOST

    agent = rank_cases.learner(PPO)
    checkpoint.load(two / "relay" / "step-3", model=agent.modules, optimizer=agent.policy.optimizer)
    assert distance(agent.modules.state_dict(), load_file(tmp_path / "step-3" / "model.safetensors")) < MOST


def test_checkpoints_in_parts_are_those_of_one_process_too(two: Path, tmp_path: Path) -> None:
    """The same relay by checkpoints of parts: to the bit that of whole ones, and each becomes the other."""
    parts, whole = two / "in parts", two / "relay"
    assert (two / "0" / "in parts.json").read_text() == (two / "0" / "relay.json").read_text()
    for step in ("step-1", "step-3"):
        assert len([*(parts / step / "shards").iterdir()]) == 2 and not (parts / step / "model.safetensors").exists()
        joined = checkpoint.convert(parts / step, tmp_path / step, sharded=False)
        again = checkpoint.convert(joined, tmp_path / "again", sharded=True)
        back = checkpoint.convert(again, tmp_path / "back", sharded=False)
        for name in ("model.safetensors", "optimizer.safetensors"):
            ours = load_file(whole / step / name)
            for folder in (joined, back):
                theirs = load_file(folder / name)
                assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
        assert checkpoint.read_state(back) == checkpoint.read_state(whole / step)

    agents = [rank_cases.learner(PPO) for _ in range(2)]
    for folder, agent in zip((parts, whole), agents, strict=True):
        checkpoint.load(folder / "step-3", model=agent.modules, optimizer=agent.policy.optimizer)
    ours, theirs = (agent.modules.state_dict() for agent in agents)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    moments = [
        torch.cat([value.flatten() for of in agent.policy.optimizer.state.values() for value in of.values()])
        for agent in agents
    ]
    assert torch.equal(*moments)


@pytest.mark.parametrize("damage", ["missing", "truncated", "more", "changed"])
def test_a_damaged_part_is_found(two: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(two / "in parts" / "step-1", tmp_path / "step-1")
    part = max((tmp_path / "step-1" / "shards").iterdir())
    content = part.read_bytes()
    if damage == "missing":
        part.unlink()
    elif damage == "truncated":
        part.write_bytes(content[:-1])
    elif damage == "more":
        part.with_name("shard-00009.safetensors").write_bytes(content)
    else:
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    agent = rank_cases.learner(PPO)
    with pytest.raises(CheckpointError, match=r"shards/shard-|manifest"):
        checkpoint.load(tmp_path / "step-1", model=agent.modules, optimizer=agent.policy.optimizer)
    assert checkpoint.latest(tmp_path) is None


def test_sharded_adapters_are_saved_as_those_of_one_process(two: Path, tmp_path: Path) -> None:
    rank_cases.saved_adapters(tmp_path)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        theirs, ours = load_file(two / "adapters" / name), load_file(tmp_path / name)
        assert theirs.keys() == ours.keys() and distance(ours, theirs) < MOST


def test_a_process_has_its_share_of_weights_and_moments(two: Path) -> None:
    """Half of each, but for the counters of steps."""
    for rank in (0, 1):
        whole, shared = (json.loads((two / str(rank) / "sizes.json").read_text())[how] for how in ("none", "full"))
        print(rank, whole, shared)
        assert {name: whole[name] / shared[name] for name in whole} == pytest.approx(
            {"student": 2.0, "teacher": 2.0, "moments": 2.0}, rel=0.01
        )


@minutes
def test_four_processes_on_two_machines_share_weights_within_each(tmp_path: Path) -> None:
    done = torchrun(str(TESTS / "rank_cases.py"), str(tmp_path / "four"), "hybrid", processes=4)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / "four" / f"{rank}.json").read_text()) for rank in range(4)]
    assert all(one == found[0] for one in found)
    alone = rank_cases.relay(tmp_path / "alone", ("none",) * 2)
    assert json.loads(json.dumps(alone)) == found[0]["updates"]
    assert len([*(tmp_path / "four" / "step-2" / "shards").iterdir()]) in (2, 4)  # those of each machine are equal
    checkpoint.convert(tmp_path / "four" / "step-2", tmp_path / "joined", sharded=False)
    files = [load_file(folder / "model.safetensors") for folder in (tmp_path / "alone" / "step-2", tmp_path / "joined")]
    assert distance(*files) < MOST
    assert found[0]["sizes"]["moments"] == pytest.approx(rank_cases.sizes("none")["moments"] / 2, rel=0.15)
    print(found[0]["sizes"])


@pytest.mark.parametrize(
    "settings",
    [{"teacher_decay": 0.9}, {"teacher_tokens": "map"}, {"teacher_device": "cpu"}, {"reference_model": "self"}],
)
def test_what_is_not_sharded_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"^{next(iter(settings))}: .*sharding"):
        rank_cases.learner(sharding="full", **settings)


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

    agent = rank_cases.learner(sharding="full")
    assert not is_sharded(agent.student.module) and type(next(agent.student.module.parameters())) is torch.nn.Parameter
    with whole(agent.student, None):
        assert state_dict(agent.student.module).keys() == agent.student.module.state_dict().keys()
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    norms = []
    for clip in (clip_gradients, torch.nn.utils.clip_grad_norm_):
        for number, weight in enumerate(weights):
            weight.grad = torch.full_like(weight, 0.3 + number)
        norms.append((clip(weights, 0.7).item(), [weight.grad for weight in weights]))
    assert norms[0][0] == norms[1][0] and all(map(torch.equal, norms[0][1], norms[1][1]))


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


@pytest.mark.parametrize("rank", ["2", "-1"])
def test_a_rank_that_no_process_of_the_job_has_waits_for_nobody(monkeypatch, rank):
    for variable, text in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ProcessError, match="ranks go from 0 to 1"):
        ranks.join()
