"""The peer: the line without it, its peak of memory, its losses as ours, its steps as they were asked for.

TRL's losses are the mean over all completion tokens of the batch (`token_mean` here), and its beta is the teacher's
share of the mixture as ours is: forward KL at 0, reverse KL at 1, JSD(beta) between.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.lm import save
from rlgkd.ops import divergence as D
from rlgkd.scripts._peak_memory import peak_mb
from rlgkd.scripts.benchmarks import peer_trl
from rlgkd.scripts.benchmarks.job import BenchmarkJob

VOCABULARY = 64
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def job(folder: Path, **changes: object) -> dict[str, object]:
    settings: dict[str, object] = {
        "student": str(folder / "student"),
        "teacher": str(folder / "teacher"),
        "kind": "distill",
        "batch": 4,
        "prompts": ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w10"],
        "group": 1,
        "new_tokens": 5,
        "steps": 2,
        "warmup": 1,
        "threads": 1,
        "seed": 0,
    }
    return settings | changes


def test_without_trl_there_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job(tmp_path)))
    with pytest.raises(SystemExit) as done:
        peer_trl.main([str(file)])
    printed = capsys.readouterr()
    assert (done.value.code, printed.out) == (2, "")
    assert printed.err == "rlgkd: peer: 'trl' does not work; it is not installed: pip install 'rlgkd[trl]'\n"


def test_an_unknown_kind_of_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="kind: 'dpo' does not work; choose one of distill, gkd, rl"):
        peer_trl.measure(BenchmarkJob(**job(tmp_path, kind="dpo")))  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="getrusage does count the parent's on Linux alone")
def test_the_peak_of_memory_is_the_process_s_own_and_not_its_parent_s() -> None:
    held = b"x" * (512 * 2**20)
    child = "from rlgkd.scripts._peak_memory import peak_mb; print(peak_mb())"
    printed = subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, text=True).stdout
    assert 5 < float(printed) < len(held) / 2**20 < peak_mb()


def ours(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    if beta in (0.0, 1.0):
        return D.reverse_kl if beta else D.forward_kl
    return D.get("jsd", beta=beta)


@pytest.fixture
def batch() -> tuple[torch.nn.Module, torch.nn.Module, Tensor, Tensor]:
    """Teacher, student, tokens [B, T], and where a token is of a completion; the second ends early."""
    models = [tiny.model(vocabulary=VOCABULARY, seed=seed) for seed in (1, 2)]
    tokens_BT = torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    action_BT = torch.zeros(3, 9, dtype=torch.bool)
    action_BT[:, 4:] = True
    action_BT[1, 6:] = False
    return models[0], models[1], tokens_BT, action_BT


def agree(theirs: Tensor, expected: Tensor, student: torch.nn.Module) -> None:
    """The values, and the gradients of every weight."""
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-6)
    assert expected > 0.01
    wanted = torch.autograd.grad(expected, list(student.parameters()), retain_graph=True)
    for got, want in zip(torch.autograd.grad(theirs, list(student.parameters())), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_the_loss_of_gkd_trainer_is_our_divergence_s_mean_over_tokens(beta, batch, monkeypatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = pytest.importorskip("trl.experimental.gkd")
    teacher, student, tokens_BT, action_BT = batch
    with torch.no_grad():
        teacher_BTV = teacher(tokens_BT).logits[:, :-1]
    student_BTV = student(tokens_BT).logits[:, :-1]
    labels_BT = tokens_BT.masked_fill(~action_BT, -100)[:, 1:]
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student_BTV, teacher_BTV, labels_BT, beta=beta)
    agree(theirs, ours(beta)(teacher_BTV, student_BTV)[action_BT[:, 1:]].mean(), student)


@pytest.mark.parametrize("beta", BETAS)
def test_the_loss_of_distillation_trainer_is_our_divergence_s_mean_over_tokens(beta, batch) -> None:
    chunked = pytest.importorskip("trl.trainer.distillation_trainer")._chunked_divergence_loss
    teacher, student, tokens_BT, action_BT = batch
    with torch.no_grad():
        teacher_BTH = teacher.model(tokens_BT).last_hidden_state[:, :-1]
        teacher_BTV = teacher.lm_head(teacher_BTH)
    student_BTH = student.model(tokens_BT).last_hidden_state[:, :-1]
    mask_BT = action_BT[:, 1:]
    theirs, _, count = chunked(
        student_BTH, teacher_BTH, student.lm_head.weight, teacher.lm_head.weight, mask_BT.int(), beta
    )
    assert count == mask_BT.sum()
    agree(theirs, ours(beta)(teacher_BTV, student.lm_head(student_BTH))[mask_BT].mean(), student)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "group"), [("distill", 1), ("gkd", 1), ("rl", 2), ("sft", 1), ("generate", 1)])
def test_trl_takes_the_steps_that_were_asked_for_and_prints_one_line(kind: str, group: int, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    tokenizer = tiny.word_tokenizer(*(f"w{n}" for n in range(1, VOCABULARY)))
    for name, seed in (("teacher", 1), ("student", 2)):
        save(tiny.model(vocabulary=VOCABULARY, seed=seed), tokenizer, tmp_path / name)
    file = tmp_path / "job.json"
    references = ["w11", "w12 w13", "w14", "w15 w16 w17"] if kind == "sft" else []
    file.write_text(json.dumps(job(tmp_path, kind=kind, group=group, references=references)))
    command = [sys.executable, "-m", "rlgkd.scripts.benchmarks.peer_trl", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured.keys() == {"seconds", "peak_mb", "peaks_mb", "loss", "tokens", "versions"}
    assert measured["tokens"] == ([0, 0] if kind == "sft" else [20, 20]) and len(measured["seconds"]) == 2
    assert min(measured["seconds"]) > 0 and measured["peak_mb"] > 100
    assert len(measured["loss"]) == (0 if kind == "generate" else 2)
    if kind in ("distill", "gkd"):
        assert min(measured["loss"]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("method", ["distill", "gkd", "rl"])
def test_trl_s_student_is_measured_between_steps(method: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    tokenizer = tiny.word_tokenizer(*(f"w{n}" for n in range(1, VOCABULARY)))
    for name, seed in (("teacher", 1), ("student", 2)):
        save(tiny.model(vocabulary=VOCABULARY, seed=seed), tokenizer, tmp_path / name)
    share, group = (0.5, 1) if method == "gkd" else (1.0, 2 if method == "rl" else 1)
    given = job(tmp_path, kind=method, group=group, warmup=0, references=["w11", "w12 w13", "w14", "w15 w16 w17"])
    held_out = [{"prompt": "w1 w5", "reference": "w2 w3"}, {"prompt": "w7", "reference": "w2"}]
    file = tmp_path / "job.json"
    file.write_text(json.dumps(given | {"student_share": share, "held_out": held_out, "longest_prompt": 4}))
    command = [sys.executable, "-m", "rlgkd.scripts.benchmarks.peer_trl", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert [point["update"] for point in measured["curve"]] == [0, 1, 2]
    assert measured["curve"][2]["seconds"] == pytest.approx(sum(measured["seconds"]), abs=0.01)
    assert all(point["reverse_kl"] > 0 for point in measured["curve"])
