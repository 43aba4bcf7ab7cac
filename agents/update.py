"""The gradient of Eq. 5 over a batch of trajectories, in micro-batches without padding to speak of.

Micro-batches are cut by a token budget from trajectories sorted by length; the reductions' weights come from the
whole batch, so the split changes nothing but the memory. The teacher's body runs once over each micro-batch and its
head only at action positions; heads and divergence are fused chunk by chunk (rlgkd.lm.fused).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from rlgkd.lm.fused import fused_sum
from rlgkd.lm.model import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops import reduction
from rlgkd.ops.returns import discounted_returns
from rlgkd.types import Batch, Source, Trajectory


def accumulate_gradient(
    student: LanguageModel,
    teacher: LanguageModel | None,
    objective: Objective,
    trajectories: Sequence[Trajectory],
    advantages_B: Tensor,
    *,
    token_budget: int,
    backward: Callable[[Tensor], None],
    max_new_tokens: int | None = None,
) -> dict[str, float]:
    """Call `backward` on the loss of each micro-batch; the losses sum to that of the whole batch.

    The policy term applies to trajectories of the student's own, the divergence to all. `max_new_tokens` is the length
    that the reduction `constant` divides by.

    Returns means over the batch's tokens: `loss` (the sum), `divergence` (reduced as the objective says), `entropy`,
    in nats.
    """
    device = student.device
    lengths_B = torch.tensor([t.length for t in trajectories], device="cpu")
    own_B = torch.tensor([t.source is Source.STUDENT for t in trajectories], device="cpu")
    sequences, tokens = reduction.totals(lengths_B)
    policy_B, divergence_B = (
        reduction.weights(
            name, lengths_B, total_sequences=sequences, total_tokens=tokens,
            length=max_new_tokens if name == "constant" else None,
        )
        for name in (objective.policy_reduction, objective.divergence_reduction)
    )  # fmt: skip
    policy_B = policy_B * own_B
    if own_B.any():  # one batch in 1/lambda is the student's: so weighed, its policy term has Eq. 5's expectation
        policy_B = policy_B / objective.student_fraction

    sums = {"loss": 0.0, "divergence": 0.0, "entropy": 0.0}
    for rows in micro_batches([len(t.tokens_T) for t in trajectories], token_budget):
        batch = Batch.collate([trajectories[row] for row in rows], pad=student.pad, device=device)
        per_action = batch.action_mask_BT[:, 1:].nonzero()[:, 0]
        actions_N = student.actions(batch)
        advantages_N, policy_N, divergence_N = (
            values[rows].to(device)[per_action] for values in (advantages_B.float(), policy_B, divergence_B)
        )
        old_logp_N = batch.logp_BT[:, 1:][batch.action_mask_BT[:, 1:]]
        futures_N = torch.zeros_like(divergence_N)
        student_states_NH, teacher_states_NH = student.states(batch), None
        if teacher is not None:
            with torch.no_grad():
                teacher_states_NH = teacher.states(batch)

        def chunk_loss(
            logits_NV: Tensor,
            which: slice,
            teacher_states_NH: Tensor | None = teacher_states_NH,
            columns: tuple[Tensor, ...] = (actions_N, old_logp_N, advantages_N, policy_N, divergence_N, futures_N),
        ) -> tuple[Tensor, dict[str, Tensor]]:
            teacher_logits_NV = None
            if teacher is not None and teacher_states_NH is not None:
                with torch.no_grad():
                    teacher_logits_NV = teacher.logits(teacher_states_NH[which])
            return objective.loss(logits_NV, teacher_logits_NV, *(column[which] for column in columns))

        # What comes later must be known first; texts that the student did not sample have no such part.
        if objective.horizon > 0 and objective.alpha > 0 and teacher is not None and own_B[rows].any():
            with torch.no_grad():
                _, records = fused_sum(student, student_states_NH, chunk_loss)
            futures_N += own_B[rows].to(device)[per_action] * _futures(records["divergence"], batch, objective.horizon)
        loss, records = fused_sum(student, student_states_NH, chunk_loss)
        backward(loss)
        sums["loss"] += loss.item()
        sums["entropy"] += records["entropy"].sum().item() / max(1, tokens)
        if "divergence" in records:
            sums["divergence"] += (records["divergence"] * divergence_N).sum().item()
    return sums


def _futures(divergence_N: Tensor, batch: Batch, horizon: float) -> Tensor:
    """F_n = sum_{m>n} gamma^(m-n) D_m within each row, [N]."""
    mask_BT = batch.action_mask_BT[:, 1:]
    divergence_BT = divergence_N.new_zeros(mask_BT.shape)
    divergence_BT[mask_BT] = divergence_N
    return (discounted_returns(divergence_BT, horizon, mask_BT) - divergence_BT)[mask_BT]


def micro_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Row numbers, longest first, in groups whose padded size stays within the budget (one row at least)."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        if group and (len(group) + 1) * lengths[group[0]] > token_budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
