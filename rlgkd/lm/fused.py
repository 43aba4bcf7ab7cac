"""Head and loss, fused: sums a per-action loss over logits without ever holding [actions, vocabulary].

For each chunk of actions the head is applied, the chunk's loss is formed and at once differentiated with respect to
the hidden states and the head's weight; only those gradients are kept. So the memory is one chunk of logits whatever
the batch, and no product with the vocabulary is done twice. (Liger-style fused losses do the same for one loss; here
the loss is any function of the logits.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from rlgkd.lm.model import LanguageModel

CHUNK_ELEMENTS = 2**24
"""Logits held at a time: 64 MiB in float32 per tensor of a chunk."""

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, dict[str, Tensor]]]
"""(logits [n, V], which actions) -> (the chunk's summed loss, values to record, each [n])."""


def fused_sum(student: LanguageModel, states_NH: Tensor, loss: ChunkLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum `loss` over all actions and collect what it records.

    Returns a differentiable scalar and the recorded values concatenated to [N] (detached). The gradient reaches
    `states_NH` and the head's weight and bias, each only if it requires one; under `torch.no_grad` none is formed.
    """
    recorded: dict[str, list[Tensor]] = {}
    inputs = (states_NH, student.head.weight, student.head.bias)
    wanted = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in inputs]
    total = cast(Tensor, _FusedSum.apply(*inputs, wanted, student, loss, recorded))
    return total, {name: torch.cat(values) for name, values in recorded.items()}


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, wanted: list[bool],
        student: LanguageModel, loss: ChunkLoss, recorded: dict[str, list[Tensor]],
    ) -> Tensor:  # fmt: skip
        chunk = max(1, CHUNK_ELEMENTS // student.vocabulary)
        inputs = (states_NH, weight_VH, bias_V)
        # Leaves of their own, cut off from the graph that this function is part of.
        leaves = [t if t is None else t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        grads = [torch.zeros_like(t) if t is not None and w else None for t, w in zip(inputs, wanted, strict=True)]
        total = states_NH.new_zeros((), dtype=torch.promote_types(states_NH.dtype, torch.float32))
        for start in range(0, len(states_NH), chunk):
            which = slice(start, start + chunk)
            with torch.set_grad_enabled(any(wanted)):
                leaves[0] = states_NH[which].detach().requires_grad_(wanted[0])
                value, records = loss(student.logits(*leaves), which)
            for name, record in records.items():
                recorded.setdefault(name, []).append(record.detach())
            total += value.detach()
            if value.requires_grad:
                into = [grads[0] if grads[0] is None else grads[0][which], *grads[1:]]
                targets = [g for g in into if g is not None]
                leaf = [t for t, w in zip(leaves, wanted, strict=True) if w and t is not None]
                for target, g in zip(targets, torch.autograd.grad(value, leaf, materialize_grads=True), strict=True):
                    target += g
        ctx.grads = grads
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = [g if g is None else g.mul_(grad_outputs[0]) for g in ctx.grads]
        ctx.grads = None
        return (*grads, None, None, None, None)
