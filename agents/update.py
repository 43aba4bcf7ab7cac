"""The gradient of Eq. 5 over a batch of trajectories, in micro-batches without padding to speak of.

Micro-batches are cut by a token budget from trajectories sorted by length; the reductions' weights come from the
whole batch, so the split changes nothing but the memory. The teacher's body runs once over each micro-batch, however
many epochs there are, and its head only at action positions; heads and divergence are fused chunk by chunk
(rlgkd.lm.fused_loss).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from rlgkd.lm.fused_loss import fused_logp, fused_sum
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.shared_prefix import order_by_prefix
from rlgkd.objective import Objective
from rlgkd.ops import reduction
from rlgkd.ops.returns import discounted_returns
from rlgkd.types import ON_POLICY, Batch, Source, Trajectory

AtActions = Callable[[Tensor], Tensor]
"""[B, L] -> [N]: what belongs to each action of a micro-batch, from what is known of each action of the batch."""
Beside = Callable[[Tensor, Tensor, AtActions], Tensor]
"""(the student's states [N, H], the policy term's weights [N], AtActions) -> a scalar loss."""


def accumulate_gradient(
    student: LanguageModel,
    teacher: LanguageModel | None,
    objective: Objective,
    trajectories: Sequence[Trajectory],
    advantages_BL: Tensor,
    *,
    token_budget: int,
    backward: Callable[[Tensor], None],
    max_new_tokens: int | None = None,
    beside: Beside | None = None,
    ahead: Sequence[Tensor] = (),
) -> dict[str, float]:
    """Call `backward` on the loss of each micro-batch; the losses sum to that of the whole batch.

    The policy term applies to trajectories that were sampled with the student (`ON_POLICY`), the divergence to all.

    Args:
        student: It gets the gradient.
        teacher: None only where alpha is 0.
        objective: Eq. 5 and its knobs.
        trajectories: The batch.
        advantages_BL: Of each trajectory, [B, 1], or of each of its actions, [B, L], padded. A trajectory of NaN has no
            policy term, and the others are averaged as if it were not there.
        token_budget: Tokens, padding included, of a micro-batch.
        backward: Takes the scalar loss of a micro-batch.
        max_new_tokens: The length that the reduction `constant` divides by.
        beside: A loss to be added that needs the student's states.
        ahead: What `read_ahead` gave: the teacher's states of the first micro-batches.

    Returns means over the batch's tokens, in nats: `loss` (the sum), `divergence` (reduced as the objective says), and
    `entropy`, the student's: as it sampled where the text is its own, else as it is now.
    """
    device = student.device
    lengths_B = torch.tensor([t.length for t in trajectories], device="cpu")
    tokens = int(lengths_B.sum())
    own_B = torch.tensor([t.source in ON_POLICY for t in trajectories], device="cpu")
    skipped_B = own_B & advantages_BL.isnan().any(1)
    sampled_B = torch.tensor([t.source is Source.STUDENT for t in trajectories], device="cpu")

    def weights(name: str, lengths_B: Tensor) -> Tensor:
        sequences, tokens = reduction.totals(lengths_B)
        length = max_new_tokens if name == "constant" else None
        return reduction.weights(name, lengths_B, total_sequences=sequences, total_tokens=tokens, length=length)

    policy_B = own_B * weights(objective.policy_reduction, lengths_B * ~skipped_B)
    divergence_B = weights(objective.divergence_reduction, lengths_B)
    # Of each action, [B, L]; where there is no policy term any finite number will do.
    advantages_BL = advantages_BL.float().nan_to_num(nan=0.0).expand(-1, int(lengths_B.max()))
    if own_B.any():  # one batch in 1/lambda is the student's: so weighed, its policy term has Eq. 5's expectation
        policy_B = policy_B / objective.student_fraction

    entropy = sum(float(t.entropy_T.sum()) for t, known in zip(trajectories, sampled_B.tolist(), strict=True) if known)
    sums = {"loss": 0.0, "divergence": 0.0, "entropy": entropy / max(1, tokens)}
    for number, (rows, batch) in enumerate(micro_batches(student, trajectories, token_budget)):
        row_N = batch.action_mask_BT[:, 1:].nonzero()[:, 0]
        place_N = batch.action_mask_BT.cumsum(1)[:, 1:][batch.action_mask_BT[:, 1:]] - 1
        actions_N, sampled = student.actions(batch), bool(sampled_B[rows].all())

        def at_actions(
            values_BL: Tensor, rows: list[int] = rows, at: tuple[Tensor, Tensor] = (row_N, place_N)
        ) -> Tensor:
            return values_BL[rows].to(device)[at]

        advantages_N = at_actions(advantages_BL)
        policy_N, divergence_N, own_N = (values[rows].to(device)[row_N] for values in (policy_B, divergence_B, own_B))
        old_logp_N = batch.logp_BT[:, 1:][batch.action_mask_BT[:, 1:]]
        futures_N = torch.zeros_like(divergence_N)
        (student_states_NH, head_VH), teacher_states_NH = student.states_and_head(batch), None
        if number < len(ahead):
            teacher_states_NH = ahead[number]
        elif teacher is not None:
            with torch.no_grad():
                teacher_states_NH = teacher.states(batch)

        guide = None if teacher is None or teacher_states_NH is None else (teacher, teacher_states_NH)

        def chunk_loss(
            logits_NV: Tensor,
            teacher_logits_NV: Tensor | None,
            which: slice,
            columns: tuple[Tensor, ...] = (actions_N, old_logp_N, advantages_N, policy_N, divergence_N, futures_N),
            sampled: bool = sampled and not objective.looks_ahead,
        ) -> tuple[Tensor, dict[str, Tensor]]:
            return objective.loss(logits_NV, teacher_logits_NV, *(column[which] for column in columns), sampled=sampled)

        # What comes later must be known first; texts that the student did not sample have no such part.
        if objective.looks_ahead and own_N.any():
            with torch.no_grad():
                _, records = fused_sum(student, student_states_NH, chunk_loss, guide)
            if objective.horizon > 0 and objective.alpha > 0:
                futures_N += own_N * _futures(records["divergence"], batch, objective.horizon)
            if objective.ratio == "sequence":  # the old policy from which each token's ratio is its sequence's
                old_logp_N.copy_(records["logp"] - _row_means(records["logp"] - old_logp_N, batch))
        loss, records = fused_sum(student, student_states_NH, chunk_loss, guide, head_VH)
        if beside is not None:
            loss = loss + beside(student_states_NH, policy_N, at_actions)
        backward(loss)
        sums["loss"] += loss.item()
        if not sampled:
            others_N = ~sampled_B[rows].to(device)[row_N]
            sums["entropy"] += (records["entropy"] * others_N).sum().item() / max(1, tokens)
        if "divergence" in records:
            sums["divergence"] += (records["divergence"] * divergence_N).sum().item()
    return sums


@torch.no_grad()
def read_ahead(
    student: LanguageModel,
    teacher: LanguageModel,
    trajectories: Sequence[Trajectory],
    token_budget: int,
    *,
    read: Sequence[Tensor] = (),
    go_on: Callable[[], bool] = lambda: True,
) -> list[Tensor]:
    """The teacher's states [N, H] of the micro-batches, behind those that are `read`, as long as `go_on` says so.

    They are kept until the gradient is formed: one layer's [actions, H] in all, where sampling kept keys and values of
    every layer.
    """
    states = list(read)
    for _, batch in islice(micro_batches(student, trajectories, token_budget), len(read), None):
        if not go_on():
            break
        states.append(teacher.states(batch))
    return states


@torch.no_grad()
def of_each_action(
    lm: LanguageModel,
    trajectories: Sequence[Trajectory],
    token_budget: int,
    function: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """[B, L], float64 on the CPU, 0 behind a row's end: `function` of (states [N, H], chosen tokens [N]) -> [N]."""
    lengths_B = torch.tensor([t.length for t in trajectories], device="cpu")
    mask_BL = torch.arange(int(lengths_B.max()), device="cpu") < lengths_B[:, None]
    values_BL = torch.zeros(mask_BL.shape, dtype=torch.float64, device="cpu")
    for rows, batch in micro_batches(lm, trajectories, token_budget):
        values_RL = values_BL[rows]
        values_RL[mask_BL[rows]] = function(lm.states(batch), lm.actions(batch)).double().cpu()
        values_BL[rows] = values_RL
    return values_BL


def log_ratios(teacher: LanguageModel, trajectories: Sequence[Trajectory], token_budget: int) -> Tensor:
    """[B, L], log p_S(y_n) - log p_T(y_n) in nats, p_S as it sampled; 0 behind a row's end."""
    ratio_BL = -of_each_action(
        teacher, trajectories, token_budget, lambda states_NH, actions_N: fused_logp(teacher, states_NH, actions_N)
    )
    for row, t in enumerate(trajectories):
        ratio_BL[row, : t.length] += torch.from_numpy(t.logp_T[t.action_mask_T])
    return ratio_BL


def _grid(values_N: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """[B, T], the actions' values where they stand and 0 elsewhere, and the mask of where that is."""
    mask_BT = batch.action_mask_BT[:, 1:]
    values_BT = values_N.new_zeros(mask_BT.shape)
    values_BT[mask_BT] = values_N
    return values_BT, mask_BT


def _row_means(values_N: Tensor, batch: Batch) -> Tensor:
    """[N], for each action the mean over its row's."""
    values_BT, mask_BT = _grid(values_N, batch)
    means_B = values_BT.sum(1) / mask_BT.sum(1).clamp(min=1)
    return means_B[:, None].expand_as(values_BT)[mask_BT]


def _futures(divergence_N: Tensor, batch: Batch, horizon: float) -> Tensor:
    """F_n = sum_{m>n} gamma^(m-n) D_m within each row, [N]."""
    divergence_BT, mask_BT = _grid(divergence_N, batch)
    return (discounted_returns(divergence_BT, horizon, mask_BT) - divergence_BT)[mask_BT]


def micro_batches(
    lm: LanguageModel, trajectories: Sequence[Trajectory], token_budget: int
) -> Iterator[tuple[list[int], Batch]]:
    """Row numbers and their batch, longest first, in groups whose padded size stays within the budget (or one row).

    Samples of one prompt stand together, for the model may read their prompt once.
    """
    lengths = [len(t.tokens_T) for t in trajectories]
    keys = [t.item.key if lm.shares_prompts else "" for t in trajectories]
    for rows in _groups(order_by_prefix(lengths, keys), lengths, token_budget):
        yield rows, Batch.collate([trajectories[row] for row in rows], pad=lm.pad, device=lm.device)


def _groups(order: Sequence[int], lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    group: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        if group and (len(group) + 1) * longest > token_budget:
            yield group
            group, longest = [], lengths[row]
        group.append(row)
    if group:
        yield group
