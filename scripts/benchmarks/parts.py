"""Parts of a step, timed in a process of their own: `python -m rlgkd.scripts.benchmarks.parts JOB.json`.

`ragged`: sampling and the gradient over texts of unequal lengths, beside the same work with every row padded to the
longest. `loss`: the memory that head and divergence take beyond the states that they are given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlgkd.agents.advantages import no_credit
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import accumulate_gradient
from rlgkd.lm import LanguageModel, decode, open_by_name
from rlgkd.lm.fused_loss import fused_sum
from rlgkd.objective import Actions, Objective
from rlgkd.scripts.benchmarks.job import Job, peak_mb
from rlgkd.scripts.runs.allocator import keep_freed_memory
from rlgkd.types import Item, Score, Source, StopReason, Trajectory

SPREAD = 0.6
"""Deviation of the lengths' logarithms; their median is a third of the limit."""


def measure(job: Job) -> dict[str, Any]:
    """Time or weigh the job."""
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    return {"ragged": _ragged, "loss": _loss}[job.kind](job)


def _ragged(job: Job) -> dict[str, Any]:
    """Seconds of sampling and gradient, alternating: rows that leave and are sorted, and rows padded to the limit."""
    student = open_by_name(job.student, rows_at_once=job.settings.get("rows_at_once"))
    teacher = open_by_name(job.teacher)
    teacher.module.requires_grad_(False)
    prompts = [student.tokenizer.encode(text) for text in job.prompts[: job.batch]]
    lengths = spread(job.batch, job.new_tokens, job.seed)
    draws_BT = np.random.default_rng(job.seed).random((job.batch, job.new_tokens))
    forms: dict[str, Callable[[], list[list[int]]]] = {
        "ragged": lambda: _written(student, prompts, draws_BT, lengths),
        "padded": lambda: _written(student, prompts, draws_BT, [job.new_tokens] * job.batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(job.warmup + job.steps):
        for name, write in forms.items():
            began = time.perf_counter()
            texts = write()
            rows = [_row(*row) for row in zip(prompts, texts, lengths, strict=True)]
            rollout = Rollout(trajectories=rows).split(student, sys.maxsize)
            accumulate_gradient(
                student, teacher, Objective(alpha=1.0), rollout, no_credit(rows), backward=lambda loss: loss.backward()
            )
            student.module.zero_grad()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[job.warmup :] for name, values in seconds.items()} | {"lengths": lengths}


def _written(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], draws_BT: np.ndarray, limits: Sequence[int]
) -> list[list[int]]:
    return [c.ids for c in decode(lm, prompts, uniforms_BT=draws_BT, max_new_tokens=limits)]


def _row(prompt: Sequence[int], written: Sequence[int], length: int) -> Trajectory:
    """A text of which the first `length` tokens count; the rest is padding."""
    place_T = np.arange(len(prompt) + len(written))
    zeros_T = np.zeros(len(place_T), dtype=np.float32)
    return Trajectory(
        item=Item(key=str(prompt), prompt=""), tokens_T=np.array([*prompt, *written]),
        action_mask_T=(place_T >= len(prompt)) & (place_T < len(prompt) + length),
        logp_T=zeros_T, entropy_T=zeros_T, stop=StopReason.END, source=Source.STUDENT, sample=0, text="",
        score=Score(reward=0.0),
    )  # fmt: skip


def spread(rows: int, limit: int, seed: int) -> list[int]:
    """Lengths as texts have them: log-normal, cut at the limit, of which one is that long."""
    drawn = np.random.default_rng(seed).lognormal(np.log(limit / 3), SPREAD, rows - 1)
    return [limit, *np.clip(drawn, 1, limit).astype(int).tolist()]


def _loss(job: Job) -> dict[str, Any]:
    """MiB that the loss of `batch` x `new_tokens` actions takes at its peak, beyond states and their gradient."""
    student, teacher = open_by_name(job.student), open_by_name(job.teacher)
    teacher.module.requires_grad_(False)
    actions = job.batch * job.new_tokens
    states_NH = torch.randn(actions, student.head.in_features).requires_grad_()
    guide_NH = torch.randn(actions, teacher.head.in_features)
    states_NH.grad = torch.zeros_like(states_NH)
    student.head.weight.grad = torch.zeros_like(student.head.weight)
    torch.zeros_like(states_NH)  # the gradient in the making
    columns = Actions(
        token_N=torch.zeros(actions, dtype=torch.long),
        old_logp_N=torch.ones(actions),
        advantage_N=torch.ones(actions),
        policy_weight_N=torch.ones(actions),
        divergence_weight_N=torch.ones(actions),
        future_N=torch.ones(actions),
    )
    before = peak_mb()

    def chunk_loss(
        logits_NV: torch.Tensor, teacher_NV: torch.Tensor | None, which: slice
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return Objective(alpha=1.0).loss(logits_NV, teacher_NV, columns[which])

    fused_sum(student, states_NH, chunk_loss, (teacher, guide_NH))[0].backward()
    dense = actions * student.vocabulary * 4 / 2**20
    return {"actions": actions, "mb": peak_mb() - before, "logits_mb": dense}


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(Path(sys.argv[1]).read_text())))))
