"""How far a student agrees with its teacher at single actions: what to look at besides the divergence.

The share of the teacher's likeliest tokens that are the student's too, and the mass on them, say whether distillation
on the student's texts can work at all: it moves probability among tokens that both find likely (arXiv 2604.13016). The
log-ratio of the token that was written is what the sampled estimators reinforce. Nothing here is differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlgkd.ops.top_k_bucket import KnownTokens

TOP = 20
"""How many of the likeliest tokens are compared."""


@torch.no_grad()
def agreement(
    teacher: Tensor | KnownTokens, student_logits_NV: Tensor, token_N: Tensor, end_id_E: Tensor
) -> dict[str, Tensor]:
    """Compare a teacher with a student at N actions.

    Args:
        teacher: Its logits [N, V], or what is known of it.
        student_logits_NV: The student's; neither is changed.
        token_N: The tokens that were written.
        end_id_E: The tokens that end a text, on the logits' device.

    Returns, each [N]:
        shared: share of the teacher's 20 likeliest tokens that are among the student's 20 likeliest.
        teacher_mass, student_mass: the probability that each gives to the tokens that are shared.
        gap: log p_T(y) - log p_S(y) of the token that was written, nats.
        student_end: the probability that the student ends the text here.
        teacher_end, teacher_entropy (nats): of a teacher whose logits are known.

    Examples:
        >>> teacher, student = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[2.0, 1.0, 0.0]])
        >>> found = agreement(teacher, student, torch.tensor([1]), torch.tensor([0]))
        >>> [round(found[name].item(), 3) for name in ("shared", "gap", "student_end", "teacher_end")]
        [1.0, 1.238, 0.665, 0.042]
    """
    student_NV = _log_probabilities(student_logits_NV)
    found = {"student_end": student_NV.index_select(1, end_id_E).exp().sum(-1)}
    written_N1 = token_N[:, None]
    if isinstance(teacher, KnownTokens):
        teacher_NK, ids_NK, known_NK = teacher.logp_NK[:, :TOP], teacher.ids_NK[:, :TOP], teacher.logp_NK[:, :TOP]
        known_NK = known_NK > -torch.inf
        teacher_token_N = teacher.token_logp_N
    else:
        teacher_NV = _log_probabilities(teacher)
        teacher_NK, ids_NK = teacher_NV.topk(min(TOP, teacher_NV.shape[1]), dim=-1)
        known_NK = torch.ones_like(ids_NK, dtype=torch.bool)
        teacher_token_N = teacher_NV.gather(1, written_N1)[:, 0]
        found["teacher_end"] = teacher_NV.index_select(1, end_id_E).exp().sum(-1)
        found["teacher_entropy"] = -(teacher_NV.exp() * teacher_NV).nan_to_num(nan=0.0).sum(-1)
    found["gap"] = teacher_token_N - student_NV.gather(1, written_N1)[:, 0]
    if ids_NK.shape[1]:
        student_NK = student_NV.gather(1, ids_NK)
        least_N1 = student_NV.topk(ids_NK.shape[1], dim=-1).values[:, -1:]
        shared_NK = known_NK & (student_NK >= least_N1)
        found["shared"] = shared_NK.sum(-1) / known_NK.sum(-1).clamp(min=1)
        found["teacher_mass"] = teacher_NK.exp().masked_fill(~shared_NK, 0.0).sum(-1)
        found["student_mass"] = student_NK.exp().masked_fill(~shared_NK, 0.0).sum(-1)
    return found


def _log_probabilities(logits_NV: Tensor) -> Tensor:
    return logits_NV.log_softmax(-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
