"""Head and loss, fused: sums a per-action loss over logits without ever holding [actions, vocabulary].

For each chunk of actions the head is applied, the chunk's loss is formed and at once differentiated with respect to
the hidden states and the head's weight; only those gradients are kept. So the memory is one chunk of logits whatever
the batch, and no product with the vocabulary is done twice. (Liger-style fused losses do the same for one loss; here
the loss is any function of the logits.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from rlgkd.lm.model import LanguageModel
from rlgkd.lm.products import wide
from rlgkd.ops.policy_loss import log_probability

CHUNK_ELEMENTS = 8 * 2**20 - 2**14
"""Logits held at a time: just below 32 MiB in float32 per tensor of a chunk. Larger blocks glibc gives back to the
system when they are freed, and each new one is cleared page by page, which takes as long as the arithmetic on it."""

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, dict[str, Tensor]]]
"""(logits [n, V], which actions) -> (the chunk's summed loss, values to record, each [n])."""


def fused_sum(student: LanguageModel, states_NH: Tensor, loss: ChunkLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum `loss` over all actions and collect what it records.

    Returns a differentiable scalar and the recorded values concatenated to [N] (detached). The gradient reaches
    `states_NH` and the head's weight and bias, each only if it requires one; under `torch.no_grad` none is formed.
    """
    recorded: dict[str, list[Tensor]] = {}
    inputs = [states_NH, *student.head.parameters()]
    wanted = [t.requires_grad and torch.is_grad_enabled() for t in inputs]
    total = cast(Tensor, cast(Any, _FusedSum).apply(student, loss, recorded, wanted, *inputs))
    return total, {name: torch.cat(values) for name, values in recorded.items()}


@torch.no_grad()
def fused_logp(lm: LanguageModel, states_NH: Tensor, actions_N: Tensor) -> Tensor:
    """[N], log-probabilities of the chosen tokens in nats, chunk by chunk."""
    parts = []
    for which in _chunks(len(states_NH), lm.vocabulary):
        parts.append(log_probability(lm.logits(states_NH[which]), actions_N[which]))
    return torch.cat(parts)


class _FusedSum(torch.autograd.Function):
    """Of (states, head's weight[, bias]); `grads` holds the gradients that are wanted, by place among these."""

    @staticmethod
    def forward(
        ctx: Any, student: LanguageModel, loss: ChunkLoss, recorded: dict[str, list[Tensor]], wanted: list[bool],
        *inputs: Tensor,
    ) -> Tensor:  # fmt: skip
        states_NH, (weight_VH, _) = inputs[0], student.cut_head
        grads = {place: torch.zeros_like(inputs[place]) for place, w in enumerate(wanted) if w}
        total = states_NH.new_zeros((), dtype=torch.promote_types(states_NH.dtype, torch.float32))
        for which in _chunks(len(states_NH), student.vocabulary):
            raw_NV = student.raw_logits(states_NH[which]).requires_grad_(any(wanted))
            with torch.set_grad_enabled(any(wanted)):
                value, records = loss(student.tempered(raw_NV), which)
            for name, record in records.items():
                recorded.setdefault(name, []).append(record.detach())
            total += value.detach()
            if not value.requires_grad:
                continue
            (slope_NV,) = torch.autograd.grad(value, raw_NV)
            if 0 in grads:
                grads[0][which] = wide(slope_NV, weight_VH.T)
            if 1 in grads:
                _add_product(grads[1][: student.vocabulary], slope_NV, states_NH[which])
            if 2 in grads:
                grads[2][: student.vocabulary] += slope_NV.sum(0)
        ctx.grads, ctx.places = grads, range(len(inputs))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = [ctx.grads[place].mul_(grad_outputs[0]) if place in ctx.grads else None for place in ctx.places]
        ctx.grads = {}
        return (None, None, None, None, *grads)


def _chunks(actions: int, vocabulary: int) -> Iterator[slice]:
    """As few as CHUNK_ELEMENTS allows, all of about a size: each reads the whole head, a small one for little."""
    number = -(-actions // max(1, CHUNK_ELEMENTS // vocabulary))
    ends = [place * actions // number for place in range(number + 1)] if number else []
    return map(slice, ends, ends[1:])


def _add_product(grad_VH: Tensor, slope_NV: Tensor, states_NH: Tensor) -> None:
    """Add to the head's gradient in place, where precisions are not mixed: it is as large as the head."""
    if slope_NV.dtype == states_NH.dtype == grad_VH.dtype:
        grad_VH.addmm_(slope_NV.T, states_NH)
    else:
        grad_VH += slope_NV.T @ states_NH.to(slope_NV.dtype)
