"""Head and loss, fused: sums a per-action loss over logits without ever holding [actions, vocabulary].

For each chunk of actions the head is applied, and the chunk's loss is formed and at once differentiated with respect to
the hidden states and the head's weight; only those gradients are kept. The memory is one chunk of logits whatever the
batch, and no product with the vocabulary is computed twice. (Liger-style fused losses do so for one loss; here the loss
is any function of the logits.)

Dimensions: N actions, or those of a chunk; n actions of a block, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlgkd.lm._autograd import apply_function
from rlgkd.lm.linear import add_weight_gradient, autocast_weights, few_sizes, has_onednn, onednn_linear
from rlgkd.lm.mixture import ModelMixture, Scorer
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.policy_loss import log_probability
from rlgkd.ops.top_k_bucket import KnownTokens
from rlgkd.ops.vocabulary_map import MappedTokens, VocabularyMap

CHUNK_ELEMENTS = 8 * 2**20 - 2**14
"""Logits of a chunk on a CPU: in float32 just below 32 MiB, up to which glibc reuses freed memory (mallopt(3),
M_MMAP_THRESHOLD). Larger blocks go back to the system, which clears each new one page by page: that takes as long as
the arithmetic on it."""
ACCELERATOR_ELEMENTS = 2**27
"""Logits of a chunk elsewhere: 880 rows of a vocabulary of 152,000, half a GiB in float32, and the loss holds some five
of it. An accelerator multiplies some hundreds of times in the time in which it reads one number, and each chunk reads
the head and writes its gradient again. Not measured on one."""
BLOCK_ELEMENTS = 2**19
"""Logits of which the loss is formed at a time: on a CPU its intermediate results should stay in the caches."""
VOCABULARY_SLICE = 4096
"""Tokens of the vocabulary whose logits' gradient goes to states and head at a time: on a CPU it is then in the caches
for the second of the two products."""


@dataclass(frozen=True, kw_only=True)
class MappedStates:
    """A second model with another vocabulary, and its states at the student's actions."""

    lm: LanguageModel
    states_NH: Tensor
    """Where nothing is known, those of another action."""
    known_N: Tensor
    """bool: whether it has a distribution there."""
    map: VocabularyMap
    """The map of its vocabulary to the student's."""


TeacherStates = tuple[Scorer, Tensor]
"""A second model, or several as one, and its states [N, H] at the same actions, if the loss needs its logits."""
TeacherOutputs = TeacherStates | MappedStates | KnownTokens
"""What a teacher gives at the actions: the states of a model, or what is known of one that is elsewhere."""
TeacherAt = Tensor | MappedTokens | KnownTokens | None
"""A teacher at n actions: its logits [n, V], those of another vocabulary with the map, what is known of it, or None if
the loss needs no teacher."""
ChunkLoss = Callable[[Tensor, TeacherAt, slice], tuple[Tensor, dict[str, Tensor]]]
"""(logits [n, V], the teacher, which actions) -> (their summed loss, values to record, each [n])."""


def fused_sum(
    student: LanguageModel,
    states_NH: Tensor,
    loss: ChunkLoss,
    teacher: TeacherOutputs | None = None,
    head_VH: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum `loss` over all actions and collect what it records.

    Args:
        student: Its head is applied.
        states_NH: Its states at the actions.
        loss: See `ChunkLoss`.
        teacher: See `TeacherOutputs`.
        head_VH: The head's weight as `LanguageModel.states_and_head` returned it; None sends its gradient to it
        directly.

    Returns: a differentiable scalar, and the recorded values concatenated to [N] (detached). The gradient reaches
    `states_NH` and the head's weight and bias, each only if it requires one; under `torch.no_grad` none is formed.
    """
    recorded: dict[str, Tensor] = {}
    head = student.head
    _, *bias = head.parameters()
    inputs = [states_NH, head.weight if head_VH is None else head_VH, *bias]
    wanted = [t.requires_grad and torch.is_grad_enabled() for t in inputs]
    total: Tensor = apply_function(_FusedSum, student, loss, teacher, recorded, wanted, *inputs)
    return total, recorded


@torch.no_grad()
def fused_logp(lm: Scorer, states_NH: Tensor, actions_N: Tensor) -> Tensor:
    """[N]: log-probabilities of the chosen tokens in nats, chunk by chunk."""
    head = _head_of(lm, states_NH)
    chunks = _chunks(states_NH, lm.vocabulary)
    return torch.cat([log_probability(head.at(chunk)(slice(None)), actions_N[chunk]) for chunk in chunks])


@torch.no_grad()
def fused_values(
    lm: Scorer, states_NH: Tensor, function: Callable[[Tensor, slice], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """[N] of each value that `function` of (logits [n, V], which actions) returns, [n] each, chunk by chunk."""
    head, found = _head_of(lm, states_NH), []
    for chunk in _chunks(states_NH, lm.vocabulary):
        logits_at = head.at(chunk)
        rows = BLOCK_ELEMENTS // lm.vocabulary if states_NH.device.type == "cpu" else chunk.stop - chunk.start
        for block in _even_slices(chunk, rows):
            found.append(function(logits_at(slice(block.start - chunk.start, block.stop - chunk.start)), block))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


class _HeadLogits:
    """Raw logits of chunks, on the states' device; under autocast the weights are cast once for all of them."""

    def __init__(self, lm: LanguageModel, states_NH: Tensor) -> None:
        self.lm = lm
        self.states_NH = states_NH
        self.weight_VH, self.bias_V = autocast_weights(*lm.head_on(states_NH.device))

    def __call__(self, chunk: slice) -> Tensor:
        """Those of the chunk's actions, and of padding after them (`padded`)."""
        return onednn_linear(self.padded(chunk), self.weight_VH, self.bias_V)

    def padded(self, chunk: slice) -> Tensor:
        """The chunk's states, with zeros up to one of few numbers of rows (rlgkd.lm.linear.few_sizes)."""
        states_NH = self.states_NH[chunk]
        extra = _size(len(states_NH), self.weight_VH) - len(states_NH)
        return pad(states_NH, (0, 0, 0, extra)) if extra else states_NH

    def at(self, chunk: slice) -> Callable[[slice], Tensor]:
        """A function of rows of the chunk that returns their tempered logits."""
        raw_NV = self(chunk)[: chunk.stop - chunk.start]
        return lambda rows: self.lm.tempered(raw_NV[rows])


class _MixtureLogits:
    """The log-probabilities of several models as one."""

    def __init__(self, mixture: ModelMixture, states_NH: Tensor) -> None:
        self.mixture = mixture
        parts = mixture.split(states_NH)
        self.heads = [_HeadLogits(lm, part) for lm, part in zip(mixture.members, parts, strict=True)]

    def at(self, chunk: slice) -> Callable[[slice], Tensor]:
        """See `_HeadLogits.at`."""
        logits_at = [head.at(chunk) for head in self.heads]
        return lambda rows: self.mixture.logp([one(rows) for one in logits_at])


def _head_of(lm: Scorer, states_NH: Tensor) -> _HeadLogits | _MixtureLogits:
    return _MixtureLogits(lm, states_NH) if isinstance(lm, ModelMixture) else _HeadLogits(lm, states_NH)


class _FusedSum(torch.autograd.Function):
    """A function of (states, head's weight[, bias]), whose gradients are formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        student: LanguageModel,
        loss: ChunkLoss,
        teacher: TeacherOutputs | None,
        recorded: dict[str, Tensor],
        wanted: list[bool],
        *inputs: Tensor,
    ) -> Tensor:
        states_NH = inputs[0]
        head = _HeadLogits(student, states_NH)
        # States are some hundred times smaller than logits, so it is they that move from a teacher's device.
        teacher_head: _HeadLogits | _MixtureLogits | KnownTokens | None = None
        mapped = teacher if isinstance(teacher, MappedStates) else None
        if isinstance(teacher, KnownTokens):
            teacher_head = teacher.to(states_NH.device)
        elif teacher is not None:
            lm, teacher_states_NH = (teacher.lm, teacher.states_NH) if isinstance(teacher, MappedStates) else teacher
            teacher_head = _head_of(lm, teacher_states_NH.to(states_NH.device))
        grads = {index: torch.zeros_like(inputs[index]) for index, is_wanted in enumerate(wanted) if is_wanted}
        total = states_NH.new_zeros((), dtype=torch.promote_types(states_NH.dtype, torch.float32))
        # A teacher with another vocabulary may have the larger logits.
        vocabulary = student.vocabulary if mapped is None else max(student.vocabulary, mapped.lm.vocabulary)
        for chunk in _chunks(states_NH, vocabulary):
            teacher_at = _teacher_blocks(teacher_head, chunk, mapped)
            grad_NV = _logits_gradient(head, teacher_at, loss, chunk, total, recorded, wanted=any(wanted))
            if grad_NV is None:
                continue
            rows = chunk.stop - chunk.start
            padded_NH = head.padded(chunk)
            for tokens in _vocabulary_slices(grad_NV):
                if 0 in grads:
                    grads[0][chunk] += onednn_linear(grad_NV[:, tokens], head.weight_VH[tokens].T)[:rows]
                if 1 in grads:
                    add_weight_gradient(grads[1][tokens], grad_NV[:, tokens], padded_NH)
            if 2 in grads:
                grads[2][: student.vocabulary] += grad_NV.sum(0)
            del grad_NV  # before the next one is made, so that it takes this one's memory
        ctx.grads = grads
        ctx.inputs = len(inputs)
        return total

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = upstreams
        grads = [ctx.grads[index].mul_(upstream) if index in ctx.grads else None for index in range(ctx.inputs)]
        ctx.grads = {}  # frees them even if somebody keeps the loss
        return (None, None, None, None, None, *grads)


def _logits_gradient(
    student: _HeadLogits,
    teacher_at: Callable[[slice], TeacherAt],
    loss: ChunkLoss,
    chunk: slice,
    total: Tensor,
    recorded: dict[str, Tensor],
    *,
    wanted: bool,
) -> Tensor | None:
    """The gradient [N, V] of a chunk's loss with respect to the raw logits; None if there is none or none is `wanted`.

    It has the padding of `_HeadLogits`, with zeros.

    The loss is added to `total`. What it records is written to tensors [N] of all actions: small tensors for each chunk
    would outlive the large ones and lie between them, and the heap would grow with every chunk.
    """
    raw_NV = student(chunk)  # overwritten block by block with the gradient
    has_gradient = False
    for block in _blocks(chunk, raw_NV):
        rows = slice(block.start - chunk.start, block.stop - chunk.start)
        raw_nV = raw_NV[rows].detach().requires_grad_(wanted)
        teacher_n = teacher_at(block)
        with torch.set_grad_enabled(wanted):
            value, records = loss(student.lm.tempered(raw_nV), teacher_n, block)
        for name, record in records.items():
            if name not in recorded:
                recorded[name] = record.new_empty(len(student.states_NH))
            recorded[name][block] = record.detach()
        total += value.detach()
        if wanted:
            has_gradient |= value.requires_grad
            raw_NV[rows] = torch.autograd.grad(value, raw_nV)[0] if value.requires_grad else 0.0
    raw_NV[chunk.stop - chunk.start :] = 0.0
    return raw_NV if has_gradient else None


def _teacher_blocks(
    teacher: _HeadLogits | _MixtureLogits | KnownTokens | None, chunk: slice, mapped: MappedStates | None = None
) -> Callable[[slice], TeacherAt]:
    """A function of a block of the chunk, given by its actions, that returns the teacher there."""
    if not isinstance(teacher, _HeadLogits | _MixtureLogits):
        return lambda block: None if teacher is None else teacher[block]
    logits_at = teacher.at(chunk)

    def at(block: slice) -> TeacherAt:
        logits_nV = logits_at(slice(block.start - chunk.start, block.stop - chunk.start))
        return logits_nV if mapped is None else MappedTokens(logits_nV, mapped.known_N[block], mapped.map)

    return at


def _chunks(states_NH: Tensor, vocabulary: int) -> Iterator[slice]:
    """Slices of the actions: as few as fit, for each reads the whole head again."""
    if states_NH.device.type != "cpu":
        return _even_slices(slice(0, len(states_NH)), ACCELERATOR_ELEMENTS // vocabulary)
    largest = CHUNK_ELEMENTS // vocabulary
    while few_sizes(largest) > largest:
        largest -= 1
    return _even_slices(slice(0, len(states_NH)), largest)


def _size(rows: int, weight_VH: Tensor) -> int:
    """The rows that are multiplied with the head for so many actions."""
    return few_sizes(rows) if has_onednn(weight_VH) else rows


def _blocks(chunk: slice, logits_NV: Tensor) -> Iterator[slice]:
    """Slices of a chunk; on an accelerator the whole, for there the calls are what takes time."""
    rows = BLOCK_ELEMENTS // logits_NV.shape[1] if logits_NV.device.type == "cpu" else len(logits_NV)
    return _even_slices(chunk, rows)


def _vocabulary_slices(logits_NV: Tensor) -> Iterator[slice]:
    """Slices of the vocabulary; on an accelerator the whole, and in half precision, where partial sums are rounded."""
    size = logits_NV.shape[1]
    in_slices = logits_NV.dtype.itemsize >= 4 and logits_NV.device.type == "cpu"
    return _even_slices(slice(0, size), VOCABULARY_SLICE if in_slices else size)


def _even_slices(whole: slice, largest: int) -> Iterator[slice]:
    """As few slices as possible, all of one size but the last, so that the allocator can reuse their blocks.

    Of nothing it is one empty slice, for which functions are called too, and return values of their names and types.
    """
    size = whole.stop - whole.start
    count = max(1, -(-size // max(1, largest)))
    if size == 0:
        return iter((whole,))
    step = -(-size // count)
    return (slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step))
