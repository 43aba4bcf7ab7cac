"""Who chooses the next token when the student is not alone: distributions made of the teacher's and the student's.

A text sampled from one of these is not on-policy, but its log-probabilities under it are known and recorded, so an
importance weight can tell the student's own from it (rlgkd.ops.policy_loss).

To add a behaviour: write one function (teacher_logits, student_logits) -> log-probabilities here and name it in
`BEHAVIOURS` at the bottom; its settings are its keyword-only arguments, by names that the agents have
(`teacher_share`, `kept_top_k`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._registry import Pairwise, bind


def teacher_mixed(teacher_logits: Tensor, student_logits: Tensor, *, teacher_share: float = 0.2) -> Tensor:
    """a p_T + (1 - a) p_S: each token by the teacher in this share of cases.

    Args:
        teacher_logits: [..., V], any floating dtype.
        student_logits: [..., V], same shape.
        teacher_share: a, in [0, 1].

    Returns:
        [..., V], log-probabilities in nats, float32 or better.

    Raises:
        SettingError: teacher_share out of range.

    Source: Gu et al. 2023, arXiv 2306.08543, Section 2.2 (MiniLLM; 0.2 there).

    Example:
        >>> teacher, student = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
        >>> teacher_mixed(teacher, student, teacher_share=0.25).exp().tolist()
        [0.6000000238418579, 0.4000000059604645]
    """
    if not 0.0 <= teacher_share <= 1.0:
        raise SettingError("teacher_share", teacher_share, "give a number in [0, 1]")
    return (teacher_share * _p(teacher_logits) + (1.0 - teacher_share) * _p(student_logits)).log()


def interleaved(teacher_logits: Tensor, student_logits: Tensor, *, kept_top_k: int = 25) -> Tensor:
    """The student's token where it is among the teacher's `kept_top_k`, else one drawn anew from the teacher.

    p(y) = p_S(y) [y in K] + (1 - p_S(K)) p_T(y), K the teacher's `kept_top_k` likeliest. At V the student is alone.

    Arguments and result as for `teacher_mixed`. Raises: SettingError for kept_top_k below 1.

    Source: Xu et al. 2024, arXiv 2410.11325 (speculative KD; K = 25 there).

    Example:
        >>> teacher, student = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
        >>> interleaved(teacher, student, kept_top_k=1).exp().tolist()
        [0.875, 0.125]
    """
    if kept_top_k < 1:
        raise SettingError("kept_top_k", kept_top_k, "give 1 or more")
    teacher_V, student_V = _p(teacher_logits), _p(student_logits)
    ids_K = teacher_logits.topk(min(kept_top_k, teacher_logits.shape[-1]), dim=-1).indices
    kept_V = torch.zeros_like(student_V).scatter(-1, ids_K, student_V.gather(-1, ids_K))
    return (kept_V + (1.0 - kept_V.sum(-1, keepdim=True)).clamp(min=0.0) * teacher_V).log()


def get(name: str, **settings: float) -> Pairwise:
    """Return the behaviour of this name with its settings bound; it can be pickled.

    Raises: SettingError for an unknown name, an unknown setting, or a value outside its range.

    Example:
        >>> get("interleaved", kept_top_k=8)(torch.zeros(2), torch.zeros(2)).exp().tolist()
        [0.5, 0.5]
    """
    return bind("behaviour", name, BEHAVIOURS, settings)


def _p(logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


BEHAVIOURS: dict[str, Callable[..., Tensor]] = {"teacher_mixed": teacher_mixed, "interleaved": interleaved}
