"""Behaviour policies that combine teacher and student: distributions from which the next token is sampled.

A completion sampled from one of these is off-policy, but its log-probabilities are known and recorded, so an importance
weight can correct for it (rlgkd.ops.policy_loss).

To add a behaviour policy: write one function (teacher_logits, student_logits) -> log-probabilities here and name it in
`BEHAVIOURS` at the bottom. Its settings are its keyword-only arguments, each with one sentence in its docstring's
`Args`, by names that the agents have (`teacher_share`, `kept_top_k`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._registry import Pairwise, bind


def teacher_mixed(teacher_logits: Tensor, student_logits: Tensor, *, teacher_share: float = 0.2) -> Tensor:
    """a p_T + (1 - a) p_S: each token is the teacher's with probability a = `teacher_share`.

    Args:
        teacher_logits: [..., V], any floating dtype.
        student_logits: [..., V], same shape.
        teacher_share: The probability that the teacher samples a token, in [0, 1].

    Returns:
        [..., V], log-probabilities in nats, float32 or better.

    Raises:
        SettingError: teacher_share out of range.

    Source: Gu et al. 2023, arXiv 2306.08543, Section 2.2 (MiniLLM; 0.2 there).

    Examples:
        >>> teacher, student = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
        >>> teacher_mixed(teacher, student, teacher_share=0.25).exp().tolist()
        [0.6000000238418579, 0.4000000059604645]
    """
    if not 0.0 <= teacher_share <= 1.0:
        raise SettingError("teacher_share", teacher_share, "give a number in [0, 1]")
    mixed_V = teacher_share * _probabilities(teacher_logits) + (1.0 - teacher_share) * _probabilities(student_logits)
    return mixed_V.log()


def interleaved(teacher_logits: Tensor, student_logits: Tensor, *, kept_top_k: int = 25) -> Tensor:
    """The student's token if it is among the teacher's `kept_top_k` likeliest, else one sampled from the teacher.

    p(y) = p_S(y) [y in K] + (1 - p_S(K)) p_T(y), K the teacher's `kept_top_k` likeliest tokens.

    Args:
        teacher_logits: [..., V], any floating dtype.
        student_logits: [..., V], same shape.
        kept_top_k: How many of the teacher's likeliest tokens the student may keep, 1 or more; V leaves the student
            alone.

    Returns:
        [..., V], log-probabilities in nats, float32 or better.

    Raises:
        SettingError: kept_top_k below 1.

    Source: Xu et al. 2024, arXiv 2410.11325 (speculative KD; K = 25 there).

    Examples:
        >>> teacher, student = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
        >>> interleaved(teacher, student, kept_top_k=1).exp().tolist()
        [0.875, 0.125]
    """
    if kept_top_k < 1:
        raise SettingError("kept_top_k", kept_top_k, "give 1 or more")
    teacher_V = _probabilities(teacher_logits)
    student_V = _probabilities(student_logits)
    ids_K = teacher_logits.topk(min(kept_top_k, teacher_logits.shape[-1]), dim=-1).indices
    kept_V = torch.zeros_like(student_V).scatter(-1, ids_K, student_V.gather(-1, ids_K))
    return (kept_V + (1.0 - kept_V.sum(-1, keepdim=True)).clamp(min=0.0) * teacher_V).log()


def get(name: str, **settings: float) -> Pairwise:
    """Return the behaviour policy of this name with its settings bound; it can be pickled.

    Raises:
        SettingError: an unknown name, an unknown setting, or a value outside its range.

    Examples:
        >>> get("interleaved", kept_top_k=8)(torch.zeros(2), torch.zeros(2)).exp().tolist()
        [0.5, 0.5]
    """
    return bind("behaviour", name, BEHAVIOURS, settings)


def _probabilities(logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))


BEHAVIOURS: dict[str, Callable[..., Tensor]] = {"teacher_mixed": teacher_mixed, "interleaved": interleaved}
