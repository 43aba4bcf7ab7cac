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

from rlgkd.lm.linear import add_product, autocast_weights, wide
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.policy_loss import log_probability

CHUNK_ELEMENTS = 8 * 2**20 - 2**14
"""Logits held at a time on a CPU: just below 32 MiB in float32 per tensor of a chunk. Larger blocks glibc gives back to
the system when they are freed, and each new one is cleared page by page: that takes as long as the arithmetic on it."""
ACCELERATOR_ELEMENTS = 2**25
"""Logits held at a time elsewhere: 220 rows of a vocabulary of 152,000. An accelerator makes some hundreds of
multiplications in the time in which it reads one number, and the head is read for each chunk. Not measured on one."""
BLOCK_ELEMENTS = 2**19
"""Logits of which the loss is formed at a time: on a CPU what it makes of them shall stay in the caches."""
PART = 4096
"""Tokens of the vocabulary whose logits' gradient goes to states and head at a time: on a CPU what one of the two
products has read of it is in the caches for the other."""

Guide = tuple[LanguageModel, Tensor]
"""A second model with its states [N, H] at the same actions, whose logits the loss needs too."""
ChunkLoss = Callable[[Tensor, Tensor | None, slice], tuple[Tensor, dict[str, Tensor]]]
"""(logits [n, V], the guide's [n, V], which actions) -> (their summed loss, values to record, each [n])."""


def fused_sum(
    student: LanguageModel, states_NH: Tensor, loss: ChunkLoss, guide: Guide | None = None,
    head_VH: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Sum `loss` over all actions and collect what it records.

    `head_VH` is the head's weight as `LanguageModel.states_and_head` gave it; else its gradient goes to it directly.

    Returns a differentiable scalar and the recorded values concatenated to [N] (detached). The gradient reaches
    `states_NH` and the head's weight and bias, each only if it requires one; under `torch.no_grad` none is formed.
    """
    recorded: dict[str, Tensor] = {}
    head = student.head
    _, *bias = head.parameters()
    inputs = [states_NH, head.weight if head_VH is None else head_VH, *bias]
    wanted = [t.requires_grad and torch.is_grad_enabled() for t in inputs]
    total = cast(Tensor, cast(Any, _FusedSum).apply(student, loss, guide, recorded, wanted, *inputs))
    return total, recorded


@torch.no_grad()
def fused_logp(lm: LanguageModel, states_NH: Tensor, actions_N: Tensor) -> Tensor:
    """[N], log-probabilities of the chosen tokens in nats, chunk by chunk."""
    head, parts = _Head(lm, states_NH), []
    for which in _chunks(states_NH, lm.vocabulary):
        parts.append(log_probability(lm.tempered(head(which)), actions_N[which]))
    return torch.cat(parts)


class _Head:
    """What a model's head makes of its states; autocast's precision is given to the weight once for all chunks."""

    def __init__(self, lm: LanguageModel, states_NH: Tensor) -> None:
        self.lm, self.states_NH = lm, states_NH
        self.weight_VH, self.bias_V = autocast_weights(*lm.trimmed_head)

    def __call__(self, which: slice) -> Tensor:
        return wide(self.states_NH[which], self.weight_VH, self.bias_V)


class _FusedSum(torch.autograd.Function):
    """Of (states, head's weight[, bias]); `grads` holds the gradients that are wanted, by place among these."""

    @staticmethod
    def forward(
        ctx: Any, student: LanguageModel, loss: ChunkLoss, guide: Guide | None, recorded: dict[str, Tensor],
        wanted: list[bool], *inputs: Tensor,
    ) -> Tensor:  # fmt: skip
        states_NH, head = inputs[0], _Head(student, inputs[0])
        guide_head = None if guide is None else _Head(*guide)
        grads = {place: torch.zeros_like(inputs[place]) for place, w in enumerate(wanted) if w}
        total = states_NH.new_zeros((), dtype=torch.promote_types(states_NH.dtype, torch.float32))
        for which in _chunks(states_NH, student.vocabulary):
            slope_NV = _slope(head, guide_head, loss, which, total, recorded, wanted=any(wanted))
            if slope_NV is None:
                continue
            for tokens in _vocabulary(slope_NV):
                if 0 in grads:
                    grads[0][which] += wide(slope_NV[:, tokens], head.weight_VH[tokens].T)
                if 1 in grads:
                    add_product(grads[1][tokens], slope_NV[:, tokens], states_NH[which])
            if 2 in grads:
                grads[2][: student.vocabulary] += slope_NV.sum(0)
            del slope_NV  # before the next one is made, which takes its place
        ctx.grads, ctx.places = grads, range(len(inputs))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = [ctx.grads[place].mul_(grad_outputs[0]) if place in ctx.grads else None for place in ctx.places]
        ctx.grads = {}
        return (None, None, None, None, None, *grads)


def _slope(
    student: _Head, guide: _Head | None, loss: ChunkLoss, which: slice, total: Tensor, recorded: dict[str, Tensor],
    *, wanted: bool,
) -> Tensor | None:  # fmt: skip
    """The gradient [n, V] of a chunk's loss with respect to what the head gives, if there is one and it is wanted.

    The loss is added to `total`, and what it records is written to [N]s made at once: small tensors that outlive the
    large ones would lie between them, and the heap would grow with every chunk.
    """
    raw_NV = student(which)  # each block's slope takes its place
    guide_NV = None if guide is None else guide(which)
    slopes = False
    for block in _blocks(which, raw_NV):
        rows = slice(block.start - which.start, block.stop - which.start)
        raw_nV = raw_NV[rows].detach().requires_grad_(wanted)
        guide_nV = None if guide is None or guide_NV is None else guide.lm.tempered(guide_NV[rows])
        with torch.set_grad_enabled(wanted):
            value, records = loss(student.lm.tempered(raw_nV), guide_nV, block)
        for name, record in records.items():
            if name not in recorded:
                recorded[name] = record.new_empty(len(student.states_NH))
            recorded[name][block] = record.detach()
        total += value.detach()
        if wanted:
            slopes |= value.requires_grad
            raw_NV[rows] = torch.autograd.grad(value, raw_nV)[0] if value.requires_grad else 0.0
    return raw_NV if slopes else None


def _chunks(states_NH: Tensor, vocabulary: int) -> Iterator[slice]:
    """As few as there may be, all of about a size: each reads the whole head, a small one for little."""
    elements = CHUNK_ELEMENTS if states_NH.device.type == "cpu" else ACCELERATOR_ELEMENTS
    return _parts(slice(0, len(states_NH)), elements // vocabulary)


def _blocks(which: slice, logits_NV: Tensor) -> Iterator[slice]:
    """Parts of a chunk; on an accelerator the whole, for there it is calls that take time."""
    rows = BLOCK_ELEMENTS // logits_NV.shape[1] if logits_NV.device.type == "cpu" else len(logits_NV)
    return _parts(which, rows)


def _vocabulary(logits_NV: Tensor) -> Iterator[slice]:
    """Parts of the vocabulary; on an accelerator the whole, as of `_blocks`.

    In half precision too, where the sum of the parts would be rounded with each of them.
    """
    size, full = logits_NV.shape[1], logits_NV.dtype.itemsize >= 4
    return _parts(slice(0, size), PART if full and logits_NV.device.type == "cpu" else size)


def _parts(which: slice, largest: int) -> Iterator[slice]:
    """As few as there can be, all of a size but the last: what one leaves in memory, the next one takes."""
    size = which.stop - which.start
    step = -(-size // max(1, -(-size // max(1, largest)))) or 1
    return (slice(start, min(start + step, which.stop)) for start in range(which.start, which.stop, step))
