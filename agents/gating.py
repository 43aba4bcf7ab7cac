"""The weights of a gate (rlgkd.ops.gate) at the actions of a rollout: what it asks for is collected, and it is called.

All of it is of the policy that sampled, and of the whole rollout: a mean or a rank among tokens does not depend on
micro-batches or processes. The teacher's states are kept for the gradient, which needs them too.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlgkd.agents.advantages import Credit
from rlgkd.agents.micro_batch import MicroBatch, prefetch_teacher_states
from rlgkd.agents.probing import TeacherAnswers
from rlgkd.agents.rollout import Rollout
from rlgkd.errors import SettingError
from rlgkd.lm.fused_loss import TeacherAt, fused_sum, fused_values
from rlgkd.lm.model import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops import gate, policy_loss
from rlgkd.ops.gates_by_outcome import outcome
from rlgkd.teachers import ModelTeacher, Teacher, model_of

ASKS_ANSWERS = "teacher_reward_B1"
"""The argument by which a gate asks for the teacher's own answers."""


def extra_work(name: str) -> str:
    """What the gate of this name costs an update, in words; "" if nothing to speak of."""
    head = "applies the teacher's head once more and holds its states"
    words = {
        "nothing": "",
        "teacher": head,
        "both": f"runs the student over its texts once more, {head}",
        "answers": "has the teacher answer each new prompt",
    }
    return words[gate.cost(name)]


def gated(
    credit: Credit,
    rollout: Rollout,
    objective: Objective,
    student: LanguageModel,
    teacher: Teacher | None,
    *,
    group_size: int,
    answers: TeacherAnswers | None = None,
) -> tuple[Credit, dict[str, float]]:
    """The credit with the weights of the objective's gate, and what to log: their means over the student's actions.

    Of a gate by outcome also `train/gate_right`, the share of the texts with a reward that count as right.

    Args:
        credit: The rollout's.
        rollout: Split into micro-batches.
        objective: Whose gate it is, and whose divergence it may ask for.
        student: The model that sampled.
        teacher: None if the gate asks for nothing of it.
        group_size: Samples of each prompt.
        answers: The teacher's own, for a gate that asks how good they are.

    Raises: SettingError for weights that are negative, not finite or of another shape.
    """
    name, rows = objective.gate.name, len(rollout.on_policy)
    if name == "none" or not rows:
        return credit, {}
    known = _known(credit, rollout, group_size)
    if ASKS_ANSWERS in gate.reads(name):
        assert answers is not None, "the agent has made it"
        rewards = answers.rewards([t.item for t in rollout.on_policy])
        known[ASKS_ANSWERS] = torch.tensor(rewards, dtype=torch.float64, device="cpu")[:, None]
    models = set(gate.reads(name)) - known.keys()
    if models:
        teachers = model_of(teacher)
        assert teachers is not None, "check_teacher has refused it"
        known |= _of_models(models, rollout, objective, student, teachers)
    asked = {wanted: known[wanted][:rows] for wanted in gate.reads(name)}
    mask_BL = known["mask_BL"][:rows]
    found: dict[str, Tensor] = {}
    metrics = _share_right(objective, known["reward_B1"][:rows])
    for term, weight_BL in zip(
        ("policy", "divergence"), gate.weights_of(name, objective.gate.function, asked), strict=True
    ):
        if weight_BL is None:
            continue
        own_BL = _checked(name, weight_BL, mask_BL)
        found[term] = torch.ones(known["mask_BL"].shape, dtype=torch.float64, device="cpu")
        found[term][:rows] = own_BL
        metrics[f"train/gate_{term}"] = own_BL[mask_BL].mean().item()
    policy_BL, divergence_BL = found.get("policy"), found.get("divergence")
    return dataclasses.replace(credit, policy_gate_BL=policy_BL, divergence_gate_BL=divergence_BL), metrics


def _share_right(objective: Objective, reward_B1: Tensor) -> dict[str, float]:
    """How many of the texts with a verdict are right; NaN if none has one, and nothing of a gate without verdicts."""
    verified_from = dict(objective.gate.parameters).get("verified_from")
    if verified_from is None:
        return {}
    outcome_B1 = outcome(reward_B1, verified_from)
    return {"train/gate_right": ((outcome_B1 > 0).sum() / (outcome_B1 != 0).sum()).item()}


def _known(credit: Credit, rollout: Rollout, group_size: int) -> dict[str, Tensor]:
    """What a gate may ask for that needs no model: [B, L] or [B, 1] on the host, the student's texts first."""
    trajectories, longest = rollout.trajectories, rollout.longest
    lengths_B = torch.tensor([t.length for t in trajectories], device="cpu")
    mask_BL = torch.arange(longest, device="cpu") < lengths_B[:, None]
    sampled: dict[str, Tensor] = {}
    for name, field in (("logp_BL", "logp_T"), ("entropy_BL", "entropy_T")):
        sampled[name] = torch.zeros(mask_BL.shape, dtype=torch.float64, device="cpu")
        for row, t in enumerate(trajectories):
            sampled[name][row, : t.length] = torch.from_numpy(getattr(t, field)[t.action_mask_T]).double()
    rewards = [[t.score.reward] for t in trajectories]
    return {
        "mask_BL": mask_BL,
        "advantage_BL": credit.advantages_BL.double().expand(-1, longest).masked_fill(~mask_BL, 0.0),
        "reward_B1": torch.tensor(rewards, dtype=torch.float64, device="cpu"),
        "group_B1": torch.arange(len(trajectories), device="cpu")[:, None] // group_size,
        **sampled,
    }


def _of_models(
    wanted: set[str], rollout: Rollout, objective: Objective, student: LanguageModel, teacher: ModelTeacher
) -> dict[str, Tensor]:
    """[B, L] of each that is wanted, on the host: what needs logits, 0 past a row's end."""
    parts, found = rollout.micro_batches, {}
    prefetch_teacher_states(teacher, parts)
    with_student = "divergence_BL" in wanted
    records = [_records(part, objective, student, teacher, with_student=with_student) for part in parts]
    for name in sorted(wanted):
        values_BL = torch.zeros(len(rollout.trajectories), rollout.longest, dtype=torch.float64, device="cpu")
        if parts:
            own = [record[name] for record in records]
            values = torch.cat(own).cpu().split([len(values_N) for values_N in own])  # waits for the device once
            for part, values_N in zip(parts, values, strict=True):
                part.write(values_BL, values_N)
        values_BL = rollout.ranks.sum(values_BL)
        if name in ("gap_BL", "divergence_BL"):  # what the teacher has nothing to say of
            values_BL = values_BL.masked_fill(rollout.untaught_B[:, None], 0.0)
        found[name] = values_BL
    return found


@torch.no_grad()
def _records(
    part: MicroBatch, objective: Objective, student: LanguageModel, teacher: ModelTeacher, *, with_student: bool
) -> dict[str, Tensor]:
    """What the gate may ask for, [N] of a micro-batch, chunk by chunk."""
    reader, teacher_NH = part.reader_of(teacher), part.states_of(teacher)
    token_N = student.actions(part.batch).to(teacher_NH.device)

    def of_teacher(teacher_NV: Tensor, chunk: slice) -> tuple[Tensor, ...]:
        return policy_loss.log_probability_and_entropy(teacher_NV, token_N[chunk])

    def of_both(student_NV: Tensor, teacher_n: TeacherAt, chunk: slice) -> tuple[Tensor, dict[str, Tensor]]:
        assert teacher_n is not None
        return student_NV.new_zeros(()), {"divergence_BL": objective.pointwise(teacher_n, student_NV)}

    logp_N, entropy_N = fused_values(reader, teacher_NH, of_teacher)
    records = {"teacher_entropy_BL": entropy_N}
    gap_N = logp_N.double() - part.gather(part.batch.logp_BT).to(teacher_NH.device).double()
    records["gap_BL"] = gap_N.clamp(-gate.LARGEST_GAP, gate.LARGEST_GAP)
    if with_student:
        _, both = fused_sum(student, student.states(part.batch), of_both, (reader, teacher_NH))
        records |= both
    return records


def _checked(name: str, weight_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """A gate's weights as [B, L], refused if they are not weights of these actions."""
    try:
        whole_BL = weight_BL.double().expand(mask_BL.shape)
    except RuntimeError:
        remedy = f"its weights have the shape {tuple(weight_BL.shape)}; return [B, L] or [B, 1], here {mask_BL.shape}"
        raise SettingError("gate", name, remedy) from None
    own_N = whole_BL[mask_BL]
    if not (own_N.isfinite() & (own_N >= 0)).all():
        raise SettingError("gate", name, f"it gave {own_N.min().item():g}; its weights must be finite and 0 or more")
    return whole_BL.masked_fill(~mask_BL, 1.0)
