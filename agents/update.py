"""The gradient of Eq. 5 over a rollout, accumulated over micro-batches.

The reductions' weights come from the whole rollout, so its split into micro-batches changes the memory and nothing
else. Heads and divergence are fused chunk by chunk (rlgkd.lm.fused_loss).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlgkd.agents.advantages import Credit
from rlgkd.agents.agreement import Agreement
from rlgkd.agents.micro_batch import MicroBatch
from rlgkd.agents.rollout import Rollout
from rlgkd.lm.fused_loss import TeacherAt, TeacherOutputs, fused_sum
from rlgkd.lm.model import LanguageModel
from rlgkd.objective import Actions, Objective
from rlgkd.ops import reduction
from rlgkd.ops.returns import discounted_returns
from rlgkd.ops.vocabulary_map import MappedTokens
from rlgkd.teachers import RoutedTeachers, Teacher
from rlgkd.types import ON_POLICY, Source, Trajectory


@dataclass
class Means:
    """Means over a rollout's tokens, in nats."""

    loss: float = 0.0
    """The sum of all terms."""
    divergence: float = 0.0
    """Over each text's tokens, then over texts, whatever the reduction of the loss; NaN if it is known of no text."""
    entropy: float = 0.0
    """The student's: as it sampled in its own texts, as it is now in others."""
    divergence_by_teacher: dict[str, float] = field(default_factory=dict)
    """`divergence` over the texts of each teacher, by its name; empty if all texts have one."""
    mismatch: float = math.nan
    """|log p_S now - log p_S as it sampled| over the tokens of its own texts; NaN where the loss does not need it."""
    unmapped: float | None = None
    """Probability that a teacher with another vocabulary gives to what the student's does not have, where it is known;
    None of any other teacher."""


def accumulate_gradient(
    student: LanguageModel,
    teacher: Teacher | None,
    objective: Objective,
    rollout: Rollout,
    credit: Credit,
    *,
    max_new_tokens: int | None = None,
    with_policy_term: bool = True,
    left_out_B: Tensor | None = None,
) -> Means:
    """Add the loss's gradient to the parameters', micro-batch by micro-batch, without waiting for the device.

    The losses of all micro-batches of all processes sum to that of the whole rollout. The means are the same on all
    processes, the gradients are still each process's own.

    Args:
        student: The model that gets the gradient.
        teacher: None only if alpha is 0, or the estimator needs no teacher.
        objective: Eq. 5 and its knobs.
        rollout: The texts, split into micro-batches.
        credit: Their advantages, and the weights of a gate.
        max_new_tokens: The length that the reduction `constant` divides by.
        with_policy_term: False leaves the divergence alone.
        left_out_B: bool [B]: rows without a divergence, since the teacher says nothing of them or they are not learned
            from; None is none.
    """
    trajectories = rollout.trajectories
    policy_B, divergence_B = term_weights(objective, trajectories, credit.valid_B, max_new_tokens, left_out_B)
    policy_B = policy_B * with_policy_term
    mean_B = _reduced("sequence_mean", _lengths(trajectories, left_out_B), None)
    advantages_BL = credit.advantages_BL.float().expand(-1, rollout.longest)
    ones_BL = torch.ones(len(trajectories), rollout.longest, device="cpu")
    gates_BL = [
        ones_BL if gate_BL is None else gate_BL.float()
        for gate_BL in (credit.policy_gate_BL, credit.divergence_gate_BL)
    ]
    names = [teacher.name_of(t.item) for t in trajectories] if isinstance(teacher, RoutedTeachers) else []
    teacher_of_B = {name: torch.tensor([one == name for one in names], device="cpu") for name in sorted(set(names))}
    mean_by_teacher_B = {
        name: _reduced(
            "sequence_mean", _lengths(trajectories, ~own_B if left_out_B is None else ~own_B | left_out_B), None
        )
        for name, own_B in teacher_of_B.items()
    }
    by_teacher: dict[str, list[Tensor]] = {name: [] for name in mean_by_teacher_B}
    on_policy_B = torch.tensor([t.source in ON_POLICY for t in trajectories], device="cpu")
    recorded_B = torch.tensor([t.source is Source.STUDENT for t in trajectories], device="cpu")
    tokens = max(1, sum(t.length for t in trajectories))
    agreement = rollout.agreement
    if agreement is not None:
        agreement.begin()
    losses: list[Tensor] = []
    entropies: list[Tensor] = []
    divergences: list[Tensor] = []
    mismatches: list[Tensor] = []
    unmapped: list[Tensor] = []
    with_map = 0

    for part in rollout.micro_batches:
        divergence_weight_N = part.per_row(divergence_B)
        actions = Actions(
            token_N=student.actions(part.batch),
            old_logp_N=part.gather(part.batch.logp_BT),
            advantage_N=part.per_action(advantages_BL),
            policy_weight_N=part.per_row(policy_B),
            divergence_weight_N=divergence_weight_N,
            future_N=torch.zeros_like(divergence_weight_N),
            policy_gate_N=part.per_action(gates_BL[0]),
            divergence_gate_N=part.per_action(gates_BL[1]),
            importance_N=None if rollout.importance_BL is None else part.per_action(rollout.importance_BL.float()),
        )
        recorded = bool(recorded_B[part.rows].all())
        states_NH, head_VH = student.states_and_head(part.batch)
        pair = None if teacher is None else part.outputs_of(teacher)
        # A token's loss may depend on what comes later in its text: that is a first pass, which on-policy texts have.
        if objective.looks_ahead and on_policy_B[part.rows].any():
            with torch.no_grad():
                _, records = _fused_loss(student, states_NH, objective, actions, pair, recorded=False)
            actions = _with_later_tokens(actions, objective, part, records, part.per_row(on_policy_B))
        loss, records = _fused_loss(
            student,
            states_NH,
            objective,
            actions,
            pair,
            head_VH,
            recorded=recorded and not objective.looks_ahead,
            agreement=agreement,
        )
        if credit.auxiliary is not None:
            loss = loss + credit.auxiliary(states_NH, actions.policy_weight_N, part)
        loss.backward()  # frees this micro-batch's activations before the next one's forward pass
        losses.append(loss.detach())
        if not recorded:
            entropies.append((records["entropy"] * part.per_row(~recorded_B)).sum())
        if "divergence" in records:
            divergences.append((records["divergence"] * part.per_row(mean_B)).sum())
            for name, own_B in mean_by_teacher_B.items():
                by_teacher[name].append((records["divergence"] * part.per_row(own_B)).sum())
        if "logp" in records:
            moved_N = (records["logp"] - part.gather(part.batch.logp_BT)).abs()
            mismatches.append((moved_N * part.per_row(recorded_B)).sum())
        if agreement is not None:
            agreement.keep(part, records)
        if "unmapped" in records:
            unmapped.append(records["unmapped"].sum())
            with_map += sum(text.starts for text in part.aligned)
    sums = [
        sum_on_host(scalars) for scalars in (losses, divergences, entropies, mismatches, unmapped, *by_teacher.values())
    ]
    # One exchange for all numbers: each would wait for the slowest rank.
    loss_sum, divergence, entropy, mismatch, unmapped_sum, known, *of_each = rollout.ranks.sum_numbers(
        [*sums[:5], float(with_map), *sums[5:]]
    )
    if left_out_B is not None and bool(left_out_B.all()):
        divergence = math.nan
    sampled_entropy = sum(float(t.entropy_T.sum()) for t in trajectories if t.source is Source.STUDENT)
    own = sum(t.length for t in trajectories if t.source is Source.STUDENT)
    return Means(
        loss=loss_sum,
        divergence=divergence,
        entropy=(sampled_entropy + entropy) / tokens,
        divergence_by_teacher=dict(zip(by_teacher, of_each, strict=True)),
        mismatch=mismatch / own if objective.weighs_actions and own > 0 else math.nan,
        unmapped=unmapped_sum / known if known else None,
    )


def sum_on_host(scalars: Sequence[Tensor]) -> float:
    """The sum in double precision; waits for the device once."""
    return sum(torch.stack(list(scalars)).tolist()) if scalars else 0.0


def term_weights(
    objective: Objective,
    trajectories: Sequence[Trajectory],
    valid_B: Tensor,
    max_new_tokens: int | None,
    left_out_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Two [B]: the weight of each row's actions in the policy term and in the divergence, by their reductions.

    The policy term has on-policy rows that are valid, the divergence has all rows but those that are left out.
    """
    of_policy, of_divergence = objective.reductions
    lengths_B = _lengths(trajectories)
    on_policy_B = torch.tensor([t.source in ON_POLICY for t in trajectories], device="cpu")
    counted_B = lengths_B * (valid_B | ~on_policy_B)
    policy_B = on_policy_B * _reduced(of_policy, counted_B, max_new_tokens)
    if on_policy_B.any():
        # The mean is over all rows, of which a share of lambda is on-policy (of one batch in 1 / lambda: all of them):
        # with this weight the policy term has Eq. 5's expectation.
        policy_B = policy_B / objective.student_fraction
    return policy_B, _reduced(of_divergence, _lengths(trajectories, left_out_B), max_new_tokens)


def divergence_per_reward(objective: Objective, trajectories: Sequence[Trajectory], max_new_tokens: int) -> float:
    """How often the policy term's weight of a token of these texts the divergence's is: 1 where the reductions agree.

    Times alpha / (1 - alpha) it is beta, the weight of the divergence in E[r] - beta D.
    """
    lengths_B = _lengths(trajectories)
    weighs = [(_reduced(name, lengths_B, max_new_tokens) * lengths_B).sum() for name in objective.reductions]
    return float(weighs[1] / weighs[0])


def _lengths(trajectories: Sequence[Trajectory], left_out_B: Tensor | None = None) -> Tensor:
    """[B], tokens; 0 for rows that are left out."""
    lengths_B = torch.tensor([t.length for t in trajectories], device="cpu")
    return lengths_B if left_out_B is None else lengths_B * ~left_out_B


def _reduced(name: str, lengths_B: Tensor, max_new_tokens: int | None) -> Tensor:
    """[B], the weight of each row's tokens in the whole rollout's reduction of this name."""
    sequences, tokens = reduction.totals(lengths_B)
    length = max_new_tokens if name == "constant" else None
    return reduction.weights(name, lengths_B, total_sequences=sequences, total_tokens=tokens, length=length)


def _fused_loss(
    student: LanguageModel,
    states_NH: Tensor,
    objective: Objective,
    actions: Actions,
    teacher: TeacherOutputs | None,
    head_VH: Tensor | None = None,
    *,
    recorded: bool,
    agreement: Agreement | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective's loss over the actions of a micro-batch, chunk by chunk, and what it records."""

    def chunk_loss(student_NV: Tensor, teacher_n: TeacherAt, chunk: slice) -> tuple[Tensor, dict[str, Tensor]]:
        measured = {} if agreement is None else agreement.records(teacher_n, student_NV, actions.token_N[chunk])
        loss, records = objective.loss(student_NV, teacher_n, actions[chunk], recorded=recorded)
        if isinstance(teacher_n, MappedTokens):
            records["unmapped"] = teacher_n.unmapped_n
        return loss, records | measured

    return fused_sum(student, states_NH, chunk_loss, teacher, head_VH)


def _with_later_tokens(
    actions: Actions, objective: Objective, part: MicroBatch, records: dict[str, Tensor], on_policy_N: Tensor
) -> Actions:
    """The actions with the divergence of later tokens (`horizon`), and with their sequence's ratio (`ratio`)."""
    future_N, old_logp_N = actions.future_N, actions.old_logp_N
    if objective.horizon > 0 and objective.alpha > 0:  # off-policy texts have no score-function term
        gated_N = actions.divergence_gate_N * records["divergence"]
        future_N = future_N + on_policy_N * _futures(gated_N, part, objective.horizon)
    if objective.ratio == "sequence":  # the old policy from which each token's ratio is its sequence's
        old_logp_N = records["logp"] - _row_means(records["logp"] - old_logp_N, part)
    return dataclasses.replace(actions, future_N=future_N, old_logp_N=old_logp_N)


def _row_means(values_N: Tensor, part: MicroBatch) -> Tensor:
    """[N], for each action the mean over its row's actions."""
    values_BT = part.scatter(values_N)
    means_B = values_BT.sum(1) / part.mask_BT.sum(1).clamp(min=1)
    return part.gather(means_B[:, None].expand_as(values_BT))


def _futures(divergence_N: Tensor, part: MicroBatch, horizon: float) -> Tensor:
    """F_n = sum_{m>n} gamma^(m-n) D_m within each row, [N]."""
    divergence_BT = part.scatter(divergence_N)
    return part.gather(discounted_returns(divergence_BT, horizon, part.mask_BT) - divergence_BT)
