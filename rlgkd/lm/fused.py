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
    `states_NH` and the head's weight, each only if it requires one; under `torch.no_grad` no gradient is formed.
    """
    recorded: dict[str, list[Tensor]] = {}
    total = cast(Tensor, _FusedSum.apply(states_NH, student.head.weight, student, loss, recorded))
    return total, {name: torch.cat(values) for name, values in recorded.items()}


class _FusedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_NH: Tensor, weight_VH: Tensor, student: LanguageModel, loss: ChunkLoss,
        recorded: dict[str, list[Tensor]],
    ) -> Tensor:  # fmt: skip
        chunk = max(1, CHUNK_ELEMENTS // student.vocabulary)
        wanted = [needed for needed in ctx.needs_input_grad[:2]]
        grad_states = torch.zeros_like(states_NH) if wanted[0] else None
        grad_weight = torch.zeros_like(weight_VH) if wanted[1] else None
        total = torch.zeros((), dtype=torch.float64, device=states_NH.device)
        for start in range(0, len(states_NH), chunk):
            which = slice(start, start + chunk)
            with torch.enable_grad() if any(wanted) else torch.no_grad():
                states = states_NH[which].detach().requires_grad_(wanted[0])
                weight = weight_VH.detach().requires_grad_(wanted[1])
                value, records = loss(student.logits(states, weight), which)
            for name, record in records.items():
                recorded.setdefault(name, []).append(record.detach())
            total += value.detach()
            inputs = [t for t, needed in zip((states, weight), wanted, strict=True) if needed]
            if inputs and value.requires_grad:
                grads = list(torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True))
                if grad_states is not None:
                    grad_states[which] = grads.pop(0)
                if grad_weight is not None:
                    grad_weight += grads.pop(0)
        ctx.grad_states, ctx.grad_weight = grad_states, grad_weight
        return total.to(torch.promote_types(states_NH.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        grads = (g if g is None else g.mul_(scale) for g in (ctx.grad_states, ctx.grad_weight))
        ctx.grad_states = ctx.grad_weight = None
        return (*grads, None, None, None)
