"""Checkpoints: exact, whole or absent, and refused in one line when they are not what was written.

The behaviours guarded: bits survive the round trip; a killed process, a full disk or an I/O error at any moment leaves
the earlier checkpoints whole and no temporary file; nothing is changed in a model before everything was checked.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError, SettingError

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "AdamW": lambda model: AdamW(model.parameters(), lr=1e-2),
    "fused AdamW": lambda model: AdamW(model.parameters(), lr=1e-2, fused=True),
    "AMSGrad in five groups": lambda model: Adam(
        [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), (0.1, 1 / 3, 0.7, 1e-3, 5e-8), strict=True)],
        betas=(0.8, 0.95),
        amsgrad=True,
    ),
    "SGD with momentum": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "SGD": lambda model: SGD(model.parameters(), lr=0.1),
    "tensor learning rate": lambda model: AdamW(model.parameters(), lr=torch.tensor(0.01), foreach=False),
}


class Tied(nn.Module):
    """A tiny language model whose head is its embedding; dropout makes it depend on the random state."""

    def __init__(self, tie: bool = True, hidden: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, hidden)
        self.body = nn.Sequential(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.3))
        self.head = nn.Linear(hidden, 11, bias=False)
        if tie:
            self.head.weight = self.embed.weight

    def forward(self, tokens_B: Tensor) -> Tensor:
        logits_BV: Tensor = self.head(self.body(self.embed(tokens_B)))
        return logits_BV


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> list[float]:
    """Draws its data from all three global generators."""
    losses = []
    for _ in range(steps):
        tokens_B = torch.from_numpy(np.random.randint(0, 11, 6)) + random.randrange(2)
        loss = nn.functional.cross_entropy(model(tokens_B % 11), torch.randint(0, 11, (6,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def bits(value: Any) -> Any:
    """Nested state as something that equals only what is the same to the bit, types of containers included."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().contiguous().view(-1).view(torch.uint8).tolist())
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(bits(item) for item in value)
    return (type(value), repr(value))


def tiny(number: int = 0) -> tuple[nn.Module, Optimizer]:
    """A model and an optimizer that has stepped."""
    seed(number)
    model = Tied()
    optimizer = AdamW(model.parameters())
    train(model, optimizer, 1)
    return model, optimizer


@contextmanager
def unchanged(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Model, optimizer and random states are the same to the bit afterwards."""

    def everything() -> Any:
        return bits([model.state_dict(), optimizer.state_dict(), random.getstate(), torch.get_rng_state()])

    before = everything()
    yield
    assert everything() == before


def hidden(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_continued_after_load_equals_uninterrupted_training_bit_for_bit(
    name: str, sharded: bool, tmp_path: Path
) -> None:
    seed(1)
    model = Tied()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 3)
    state = {"step": 3}
    folder = checkpoint.save(tmp_path / "step-3", model=model, optimizer=optimizer, state=state, sharded=sharded)
    saved = bits([model.state_dict(), optimizer.state_dict()])
    losses = train(model, optimizer, 4)

    seed(2)
    other = Tied()
    other_optimizer = OPTIMIZERS[name](other)
    train(other, other_optimizer, 2)
    assert checkpoint.load(folder, model=other, optimizer=other_optimizer) == {"step": 3}
    assert bits([other.state_dict(), other_optimizer.state_dict()]) == saved
    assert train(other, other_optimizer, 4) == losses
    assert bits(other.state_dict()) == bits(model.state_dict())
    assert bits(other_optimizer.state_dict()) == bits(optimizer.state_dict())


def test_training_resumed_without_the_random_states_differs(tmp_path: Path) -> None:
    """The broken variant: the test above would notice."""
    model, optimizer = tiny()
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    losses = train(model, optimizer, 4)
    checkpoint.load(folder, model=model, optimizer=optimizer)
    torch.rand(1)
    assert train(model, optimizer, 4) != losses


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.int64, torch.uint8]
)
def test_every_dtype_and_every_special_value_is_bit_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    model, optimizer = tiny()
    special = (
        torch.tensor([0, 1, 2, 3])
        if not (dtype.is_floating_point or dtype.is_complex)
        else torch.tensor([math.nan, -0.0, math.inf, 1e-45])
    )
    model.register_buffer("special", special.to(dtype))
    model.register_buffer("scalar", torch.ones((), dtype=dtype))
    model.register_buffer("empty", torch.ones(0, 3, dtype=dtype))
    model.register_buffer("transposed", torch.arange(6).reshape(2, 3).to(dtype).t())
    saved = bits(model.state_dict())
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    checkpoint.load(folder, model=model, optimizer=optimizer)
    assert bits(model.state_dict()) == saved


def test_float32_moments_of_bfloat16_parameters_are_not_rounded(tmp_path: Path) -> None:
    model = nn.Linear(3, 3, dtype=torch.bfloat16)
    optimizer = AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    for values in optimizer.state.values():
        values["exp_avg"] = torch.rand(values["exp_avg"].shape)
    saved = bits(optimizer.state_dict())
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    fresh = AdamW(model.parameters())
    checkpoint.load(folder, model=model, optimizer=fresh)
    assert bits(fresh.state_dict()) == saved


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    model, optimizer = tiny()
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    assert json.loads((folder / "model.json").read_text()) == {"ties": {"head.weight": "embed.weight"}}
    other, other_optimizer = tiny(5)
    checkpoint.load(folder, model=other, optimizer=other_optimizer)
    assert isinstance(other, Tied) and other.head.weight is other.embed.weight
    assert torch.equal(other.head.weight, model.get_parameter("embed.weight"))


@pytest.mark.parametrize("sharded", [False, True])
def test_views_of_one_storage_are_saved_apart(sharded: bool, tmp_path: Path) -> None:
    model, optimizer = tiny()
    flat = torch.arange(10.0)
    model.register_buffer("front", flat[:6])
    model.register_buffer("back", flat[4:])
    model.register_buffer("transposed", flat[:6].view(2, 3).T)
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={}, sharded=sharded)
    flat.zero_()
    checkpoint.load(folder, model=model, optimizer=optimizer)
    assert torch.equal(flat, torch.arange(10.0))


def test_random_states_are_restored(tmp_path: Path) -> None:
    model, optimizer = tiny()
    random.gauss(0, 1), np.random.standard_normal()  # each keeps its second draw for the next call
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.standard_normal(), torch.randn(1).item()]

    first = draw()
    assert draw() != first
    checkpoint.load(folder, model=model, optimizer=optimizer)
    assert draw() == first


def test_the_state_of_the_caller_comes_back(tmp_path: Path) -> None:
    model, optimizer = tiny()
    state: dict[str, checkpoint.JSON] = {
        "step": 2**70,
        "third": 1 / 3,
        "best": -math.inf,
        "text": "ä\n",
        "cursor": [1, [True, None]],
        "inner": {"a": {}},
    }
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state=state)
    assert checkpoint.load(folder, model=model, optimizer=optimizer) == state


@pytest.mark.parametrize("value", [{1: 2}, {"deep": [object()]}, torch.ones(1), b"x"])
def test_a_state_that_is_not_json_is_refused_before_anything_is_written(value: Any, tmp_path: Path) -> None:
    model, optimizer = tiny()
    with pytest.raises(CheckpointError, match=r"state\.bad.*numbers, text"):
        checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={"bad": value})
    assert not list(tmp_path.iterdir())


def test_an_optimizer_of_another_models_parameters_is_refused(tmp_path: Path) -> None:
    model, _ = tiny()
    _, optimizer = tiny()
    with pytest.raises(CheckpointError, match="pass the model that it belongs to"):
        checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})


def test_an_accelerated_optimizer_is_saved_and_restored(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, plain = tiny()
    model, optimizer = accelerator.prepare(model, plain)
    train(model, optimizer, 2)
    saved = bits(plain.state_dict())
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    losses = train(model, optimizer, 3)
    checkpoint.load(folder, model=model, optimizer=optimizer)
    assert bits(plain.state_dict()) == saved
    assert train(model, optimizer, 3) == losses
    checkpoint.load(folder, model=model, optimizer=plain)  # wrapped or not, it is the same optimizer


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("three")
    model, optimizer = tiny()
    for step in (1, 2, 3):
        checkpoint.save(parent / f"step-{step}", model=model, optimizer=optimizer, state={})
    return parent


@pytest.mark.parametrize("file", [*checkpoint.FILES, checkpoint.MANIFEST])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing", "longer", "empty", "a folder"])
def test_a_damaged_file_is_refused_in_one_line_that_names_a_whole_checkpoint(
    file: str, harm: str, three_checkpoints: Path, tmp_path: Path
) -> None:
    model, optimizer = tiny()
    shutil.copytree(three_checkpoints, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "step-3" / file
    content = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm != "missing":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"flipped": flipped, "truncated": content[:-1], "longer": content + b"0", "empty": b""}[harm])
    if file == checkpoint.MANIFEST and harm == "truncated":
        return  # only its last line end was lost: nothing to refuse
    with unchanged(model, optimizer), pytest.raises(CheckpointError, match="use an earlier checkpoint") as caught:
        checkpoint.load(tmp_path / "step-3", model=model, optimizer=optimizer)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / "step-2") in message
    assert file in message or file == checkpoint.MANIFEST  # a wrong sum in the manifest shows at the file it is of
    assert checkpoint.latest(tmp_path) == tmp_path / "step-2"


def test_where_only_a_later_checkpoint_is_whole_it_is_called_later(three_checkpoints: Path, tmp_path: Path) -> None:
    model, optimizer = tiny()
    shutil.copytree(three_checkpoints, tmp_path, dirs_exist_ok=True)
    (tmp_path / "step-1" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json.*missing; use a later checkpoint: .*step-3"):
        checkpoint.load(tmp_path / "step-1", model=model, optimizer=optimizer)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}', '{"format": "rlgkd-checkpoint-1", "files": 3}'])
def test_a_foreign_manifest_is_refused(content: str, tmp_path: Path) -> None:
    model, optimizer = tiny()
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    (folder / checkpoint.MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json.*no whole checkpoint is next to it"):
        checkpoint.load(folder, model=model, optimizer=optimizer)


@pytest.mark.parametrize("file", ["model.json", "optimizer.json", "random.json"])
@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"ties": 3}', '{"groups": [], "class": 1}', '{"numpy": 1}', "{"])
def test_a_foreign_file_with_the_right_checksum_is_one_line(
    file: str, content: str, three_checkpoints: Path, tmp_path: Path
) -> None:
    if (file, content) == ("model.json", '{"ties": 3}'):
        content = '{"ties": {"a": 3}}'
    folder = Path(shutil.copytree(three_checkpoints / "step-3", tmp_path / "step-3"))
    (folder / file).write_text(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model, optimizer = tiny()
    with unchanged(model, optimizer), pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, model=model, optimizer=optimizer)
    assert "\n" not in str(caught.value)


def _swap_moments(saved: dict[str, Any]) -> None:
    """Two parameters' moments: the shapes differ, and a fused step would read outside of one."""
    first, *_, last = saved["state"].values()
    first["exp_avg"], last["exp_avg"] = last["exp_avg"], first["exp_avg"]


@pytest.mark.parametrize(
    "harm",
    [
        _swap_moments,
        lambda saved: saved["groups"][0].update(lr="x"),
        lambda saved: saved["groups"][0].update(betas=[0.9]),
        lambda saved: saved["groups"][0].pop("eps"),
        lambda saved: saved["state"].update({"0": {}}),
        lambda saved: saved["state"].update({"999": dict(saved["state"]["0"])}),
    ],
)
def test_an_optimizer_s_state_that_does_not_fit_is_refused_before_anything_is_changed(
    harm: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    model, optimizer = tiny()
    train(model, optimizer, 1)
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    saved = json.loads((folder / "optimizer.json").read_text())
    harm(saved)
    content = json.dumps(saved)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["optimizer.json"] = {"size": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    (folder / "optimizer.json").write_text(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with unchanged(model, optimizer), pytest.raises(CheckpointError, match="not those of a checkpoint"):
        checkpoint.load(folder, model=model, optimizer=optimizer)


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors"])
def test_a_pipe_in_a_checkpoint_is_damage(file: str, three_checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(three_checkpoints / "step-3", tmp_path / "step-3")
    (tmp_path / "step-3" / file).unlink()
    os.mkfifo(tmp_path / "step-3" / file)
    assert checkpoint.damages(tmp_path) == [f"step-3/{file} is unreadable (it is a named pipe, not a file)"]


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with pytest.raises(CheckpointError, match=r"step-9.*missing"):
        checkpoint.load(tmp_path / "step-9", model=model, optimizer=optimizer)
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.prune(tmp_path / "nowhere") == []


def other_names(model: Tied) -> nn.Module:
    return nn.ModuleDict({"inner": model})


def other_dtype(model: Tied) -> nn.Module:
    return model.to(torch.float64)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Tied(hidden=9), r"'body\.0\.bias'.*shape is \(9,\) here, \(8,\) saved"),
        (lambda: Tied(tie=False), "'head.weight'.*tie is None here, embed.weight saved"),
        (lambda: other_names(Tied()), "not in the checkpoint|only in the checkpoint"),
        (lambda: other_dtype(Tied()), r"dtype is torch\.float64 here, torch\.float32 saved"),
    ],
)
def test_another_model_is_refused_before_anything_is_changed(
    build: Callable[[], nn.Module], reason: str, tmp_path: Path
) -> None:
    model, optimizer = tiny()
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    other = build()
    other_optimizer = AdamW(other.parameters())
    with unchanged(other, other_optimizer), pytest.raises(CheckpointError, match=reason):
        checkpoint.load(folder, model=other, optimizer=other_optimizer)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda model: SGD(model.parameters()), "class.*AdamW"),
        (lambda model: AdamW([{"params": [p]} for p in model.parameters()]), "parameter groups"),
        (lambda model: AdamW(list(model.parameters())[:-1]), "parameter groups"),
        (lambda model: AdamW(list(model.parameters())[::-1]), "keep the parameters' order"),
    ],
)
def test_another_optimizer_is_refused_before_anything_is_changed(
    build: Callable[[nn.Module], Optimizer], reason: str, tmp_path: Path
) -> None:
    model, optimizer = tiny()
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    train(model, optimizer, 1)
    other = build(model)
    with unchanged(model, other), pytest.raises(CheckpointError, match=reason):
        checkpoint.load(folder, model=model, optimizer=other)


def test_an_existing_checkpoint_is_replaced_and_a_folder_of_something_else_is_not(tmp_path: Path) -> None:
    model, optimizer = tiny()
    folder = tmp_path / "step-1"
    for number in (1, 2):
        checkpoint.save(folder, model=model, optimizer=optimizer, state={"number": number})
    assert checkpoint.load(folder, model=model, optimizer=optimizer) == {"number": 2}
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something else"):
        checkpoint.save(folder, model=model, optimizer=optimizer, state={})
    assert (folder / "notes.txt").read_text() == "mine" and not hidden(tmp_path)


def test_latest_counts_in_numbers_and_prune_keeps_the_newest_whole_ones(tmp_path: Path) -> None:
    model, optimizer = tiny()
    for step in (2, 9, 10, 100, 101):
        checkpoint.save(tmp_path / f"step-{step}", model=model, optimizer=optimizer, state={"step": step})
    (tmp_path / "step-101" / "state.json").write_text("{")
    (tmp_path / "step-1000").mkdir()
    (tmp_path / "step-x").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-100"
    assert checkpoint.prune(tmp_path, keep=2) == [tmp_path / "step-9", tmp_path / "step-2"]
    kept = {"step-10", "step-100", "step-101", "step-1000", "step-x"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    with pytest.raises(SettingError, match="keep"):
        checkpoint.prune(tmp_path, keep=0)


def test_temporaries_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    model, optimizer = tiny()
    whole = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    shutil.copytree(whole, tmp_path / f".step-2.tmp-{dead.pid}")
    shutil.copytree(whole, tmp_path / f".step-1.old-{dead.pid}")
    shutil.copytree(whole, tmp_path / f".step-3.old-{dead.pid}")  # died between the renames: its only copy
    (tmp_path / f".summary.json.tmp-{dead.pid}").write_text("{")
    (tmp_path / f".step-4.tmp-{os.getppid()}").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-3"
    checkpoint.prune(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"step-1", "step-3", f".step-4.tmp-{os.getppid()}"}


WRITER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from rlgkd import checkpoint
parent, rounds = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
model = torch.nn.Linear(256, 512)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
optimizer.step()

def save(number):  # every third is written over: the swap is hit too
    torch.nn.init.constant_(model.weight, number)
    checkpoint.save(parent / f"step-{number // 3}", model=model, optimizer=optimizer, state={"number": number})

acknowledged, broken_off, random_delay = 0, 0, random.Random(0)
save(0)
for _ in range(rounds):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for number in range(acknowledged + 1, 10**9):
            save(number)
            os.write(writer, b"%d\\n" % number)
            if number % 5 == 0:
                checkpoint.prune(parent)
    os.close(writer)
    with os.fdopen(reader) as lines:
        start = time.perf_counter()
        first = lines.readline()
        time.sleep(random_delay.uniform(0, 3) * (time.perf_counter() - start))  # up to some three saves later
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = max(map(int, [first, *lines.read().split()]))
    broken_off += any(p.name.startswith(".") for p in parent.iterdir())
    folder = checkpoint.latest(parent)
    number = checkpoint.load(folder, model=model, optimizer=optimizer)["number"]
    assert acknowledged <= number <= acknowledged + 1, (acknowledged, number)
    assert (model.weight == number).all()
checkpoint.prune(parent)
assert not [p for p in parent.iterdir() if p.name.startswith(".")], list(parent.iterdir())
print(acknowledged, broken_off)
"""


def test_after_kill_9_at_any_moment_the_latest_checkpoint_is_whole(tmp_path: Path) -> None:
    """And it is the last whose `save` returned, or the next one."""
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(tmp_path), "12"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    acknowledged, broken_off = map(int, done.stdout.split())
    assert acknowledged > 0 and broken_off > 0  # else nothing was tested


def test_an_error_at_any_flush_or_rename_leaves_whole_checkpoints_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = tiny()
    folder = tmp_path / "step-1"
    countdown = 0

    def failing(call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            call(*arguments)

        return wrapped

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "rename", failing(os.rename))
    checkpoint.save(folder, model=model, optimizer=optimizer, state={"old": True})
    for place in range(1, 100):
        countdown = place
        try:
            checkpoint.save(folder, model=model, optimizer=optimizer, state={"old": False})
            break
        except CheckpointError as error:
            assert "Input/output error" in str(error) and "\n" not in str(error)
        countdown = 0
        assert folder.is_dir() and checkpoint.latest(tmp_path) == folder
        checkpoint.remove_stale(tmp_path)  # the one replaced, where the very last flush failed
        assert not hidden(tmp_path)
    assert place == len(checkpoint.FILES) + 6  # manifest, folder, two renames, parent; and one that went well


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Real writes fail with EFBIG past `size` bytes, as they would on a full disk (Python ignores SIGXFSZ)."""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("size", [0, 10, 1000, 3000, 8000])
def test_a_write_that_fails_leaves_the_last_checkpoint_whole_and_no_temporary(size: int, tmp_path: Path) -> None:
    model, optimizer = tiny()
    good = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    for folder in (tmp_path / "step-2", good):
        with (
            file_size_limit(size),
            pytest.raises(CheckpointError, match=r"File too large.*earlier checkpoints") as caught,
        ):
            checkpoint.save(folder, model=model, optimizer=optimizer, state={})
        assert "\n" not in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
        assert checkpoint.latest(tmp_path) == good


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_no_temporary(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        model, optimizer = tiny()
        free = checkpoint.save(disk / "step-0", model=model, optimizer=optimizer, state={})
        for step in range(1, 10):
            try:
                checkpoint.save(disk / f"step-{step}", model=model, optimizer=optimizer, state={})
                free = disk / f"step-{step}"
            except CheckpointError as error:
                assert "No space left on device" in str(error)
                break
        else:
            pytest.fail("the disk never filled")
        assert not hidden(disk) and not (disk / f"step-{step}").exists()
        assert checkpoint.latest(disk) == free
        checkpoint.load(free, model=model, optimizer=optimizer)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model, optimizer = tiny()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not saved"):
        checkpoint.save(tmp_path / "file" / "step-1", model=model, optimizer=optimizer, state={})


def test_atomic_write_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    checkpoint.atomic_write(path, "ä old")
    checkpoint.atomic_write(path, b"new")
    with file_size_limit(3), pytest.raises(CheckpointError, match=r"summary\.json.*File too large"):
        checkpoint.atomic_write(path, "longer than three")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(CheckpointError, match="not written"):
        checkpoint.atomic_write(tmp_path / "no" / "summary.json", "")


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    model, optimizer = tiny()
    folder = checkpoint.save(tmp_path / "step-1", model=model, optimizer=optimizer, state={})
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {folder.stat().st_mode & 0o666}


def test_nothing_is_pickled(tmp_path: Path) -> None:
    model, optimizer = tiny()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (("pickle", "dumps"), ("pickle", "loads"), ("torch", "save"), ("torch", "load")):
            patch.delattr(f"{module}.{name}")
        folder = checkpoint.save(tmp_path / "step-1", model=copy.copy(model), optimizer=optimizer, state={})
        checkpoint.load(folder, model=model, optimizer=optimizer)
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
