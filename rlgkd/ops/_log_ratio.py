"""P, Q and log(P/Q) of teacher and student logits, and products with them that stay correct where one is 0.

The buffers [..., V] are large, so most functions overwrite an argument; each says which.
"""

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._exp import exp, exp_


def checked_dtype(teacher_logits: Tensor, student_logits: Tensor) -> torch.dtype:
    """Return the dtype to compute in, float32 or better, after checking shapes and dtypes."""
    if teacher_logits.ndim == 0 or teacher_logits.shape[-1] == 0:
        raise SettingError("teacher_logits.shape", tuple(teacher_logits.shape), "give [..., V] with V of 1 or more")
    if teacher_logits.shape != student_logits.shape:
        remedy = f"give the teacher's shape {tuple(teacher_logits.shape)}: same positions, same vocabulary"
        raise SettingError("student_logits.shape", tuple(student_logits.shape), remedy)
    for field, logits in (("teacher_logits", teacher_logits), ("student_logits", student_logits)):
        if not logits.is_floating_point():
            raise SettingError(f"{field}.dtype", logits.dtype, "give floating-point logits, not token ids")
    return torch.promote_types(torch.promote_types(teacher_logits.dtype, student_logits.dtype), torch.float32)


def probabilities_and_log_ratio(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return P, Q and log(P/Q), detached, in three buffers that the caller owns and may overwrite.

    log(P/Q) is NaN where both logits are -inf and infinite where one is.
    """
    dtype = checked_dtype(teacher_logits, student_logits)
    log_p_V = torch.log_softmax(teacher_logits.detach(), -1, dtype=dtype)
    log_q_V = torch.log_softmax(student_logits.detach(), -1, dtype=dtype)
    p_V = exp(log_p_V)
    log_u_V = log_p_V.sub_(log_q_V)
    return p_V, exp_(log_q_V), log_u_V


def clamped_log_ratio(log_u_V: Tensor) -> Tensor:
    """Return log(P/Q) made finite, so that a probability of 0 makes its term 0; overwrites its argument.

    At |log u| = 80 the smaller of P and Q is below 2e-35 of the larger, too little to change a sum in float64.
    """
    return log_u_V.nan_to_num_(nan=0.0).clamp_(-80.0, 80.0)


def weighted_log(probability_V: Tensor, log_V: Tensor) -> Tensor:
    """Return probability * log with 0 * inf = 0; overwrites `log_V`.

    A NaN among the logits is replaced by 0 here too, but the sum of the probabilities, which the callers add, is NaN.
    """
    return log_V.mul_(probability_V).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def score_gradient(q_V: Tensor, q_c_V: Tensor) -> Tensor:
    """Return dD/dlogits_V = Q (c - E_Q c) from Q and Q c; overwrites both."""
    return q_c_V.sub_(q_V.mul_(q_c_V.sum(-1, keepdim=True)))
