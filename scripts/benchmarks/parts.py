"""Parts of a step, measured in a process of their own: `python -m rlgkd.scripts.benchmarks.parts JOB.json`.

`ragged`: sampling and the gradient over completions of unequal lengths, and the same work with every row padded to the
longest. `loss`: the memory that head and divergence take in addition to the hidden states that they are given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlgkd.agents.advantages import no_credit
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import accumulate_gradient
from rlgkd.lm import LanguageModel, decode, open_by_name
from rlgkd.lm.fused_loss import TeacherAt, fused_sum
from rlgkd.objective import Actions, Objective
from rlgkd.scripts._peak_memory import peak_mb
from rlgkd.scripts.benchmarks.job import BenchmarkJob, read_job
from rlgkd.scripts.runs.allocator import keep_freed_memory
from rlgkd.types import Item, Score, Source, StopReason, Trajectory

LOG_LENGTH_DEVIATION = 0.6
"""Standard deviation of the logarithms of the lengths; their median is a third of the limit."""


def measure(job: BenchmarkJob) -> dict[str, Any]:
    """Measure the job's time or memory."""
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    return {"ragged": _ragged, "loss": _loss}[job.kind](job)


def _ragged(job: BenchmarkJob) -> dict[str, Any]:
    """Return the seconds of sampling and gradient, alternating between rows of unequal lengths and padded ones."""
    student = open_by_name(job.student, rows_at_once=job.settings.get("rows_at_once"))
    teacher = open_by_name(job.teacher)
    teacher.module.requires_grad_(False)
    prompts = [student.tokenizer.encode(text) for text in job.prompts[: job.batch]]
    lengths = spread_lengths(job.batch, job.new_tokens, job.seed)
    uniforms_BT = np.random.default_rng(job.seed).random((job.batch, job.new_tokens))
    limits = {"ragged": lengths, "padded": [job.new_tokens] * job.batch}
    seconds: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(job.warmup + job.steps):
        for name in limits:
            start = time.perf_counter()
            completions = _sample(student, prompts, uniforms_BT, limits[name])
            rows = [_trajectory(*row) for row in zip(prompts, completions, lengths, strict=True)]
            rollout = Rollout(trajectories=rows).split(student, sys.maxsize)
            accumulate_gradient(
                student,
                teacher,
                Objective(alpha=1.0, reduction="sequence_mean"),
                rollout,
                no_credit(rows),
            )
            student.module.zero_grad()
            seconds[name].append(time.perf_counter() - start)
    timed = {name: values[job.warmup :] for name, values in seconds.items()}
    return {**timed, "lengths": lengths}


def _sample(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], uniforms_BT: np.ndarray, limits: Sequence[int]
) -> list[list[int]]:
    return [c.ids for c in decode(lm, prompts, uniforms_BT=uniforms_BT, max_new_tokens=limits)]


def _trajectory(prompt: Sequence[int], completion: Sequence[int], length: int) -> Trajectory:
    """Return a trajectory of which the first `length` new tokens count; the rest is padding."""
    column_T = np.arange(len(prompt) + len(completion))
    zeros_T = np.zeros(len(column_T), dtype=np.float32)
    return Trajectory(
        item=Item(key=str(prompt), prompt=""),
        tokens_T=np.array([*prompt, *completion]),
        action_mask_T=(column_T >= len(prompt)) & (column_T < len(prompt) + length),
        logp_T=zeros_T,
        entropy_T=zeros_T,
        stop=StopReason.END,
        source=Source.STUDENT,
        sample=0,
        text="",
        score=Score(reward=0.0),
    )


def spread_lengths(rows: int, limit: int, seed: int) -> list[int]:
    """Draw lengths as completions have them: log-normal, cut at the limit, the first one as long as that."""
    drawn = np.random.default_rng(seed).lognormal(np.log(limit / 3), LOG_LENGTH_DEVIATION, rows - 1)
    return [limit, *np.clip(drawn, 1, limit).astype(int).tolist()]


def _loss(job: BenchmarkJob) -> dict[str, Any]:
    """Return the MiB that the loss of `batch` x `new_tokens` actions takes at its peak.

    The hidden states and all gradients are allocated before, so that they do not count.
    """
    student, teacher = open_by_name(job.student), open_by_name(job.teacher)
    teacher.module.requires_grad_(False)
    actions = job.batch * job.new_tokens
    states_NH = torch.randn(actions, student.head.in_features).requires_grad_()
    teacher_states_NH = torch.randn(actions, teacher.head.in_features)
    states_NH.grad = torch.zeros_like(states_NH)
    student.head.weight.grad = torch.zeros_like(student.head.weight)
    torch.zeros_like(states_NH)  # the gradient in the making: its pages belong to the process from now on
    columns = Actions(
        token_N=torch.zeros(actions, dtype=torch.long),
        old_logp_N=torch.ones(actions),
        advantage_N=torch.ones(actions),
        policy_weight_N=torch.ones(actions),
        divergence_weight_N=torch.ones(actions),
        future_N=torch.ones(actions),
        policy_gate_N=torch.ones(actions),
        divergence_gate_N=torch.ones(actions),
    )
    before = peak_mb()

    def chunk_loss(
        logits_NV: torch.Tensor, teacher_n: TeacherAt, which: slice
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return Objective(alpha=1.0).loss(logits_NV, teacher_n, columns[which])

    fused_sum(student, states_NH, chunk_loss, (teacher, teacher_states_NH))[0].backward()
    dense = actions * student.vocabulary * 4 / 2**20
    return {"actions": actions, "mb": peak_mb() - before, "logits_mb": dense}


if __name__ == "__main__":
    print(json.dumps(measure(read_job(Path(sys.argv[1])))))
