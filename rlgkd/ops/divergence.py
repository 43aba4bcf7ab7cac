"""Divergences between teacher and student over the full vocabulary.

P = p_T = softmax(teacher_logits), Q = p_S = softmax(student_logits), u = P/Q. Always (teacher, student), always in
nats per position: [..., V], [..., V] -> [...]. Computed in float32 or better, so bfloat16 logits give float32 values.

Conventions. 0 log 0 = 0: a token of probability 0 on both sides (logits of -inf, or underflow) contributes nothing,
neither to the value nor to the gradient. A token that only one side can produce makes the KL that charges for it
infinite, as it should. The teacher is a constant: only the student's logits receive a gradient.

The gradient is written down, not taped. For an f-divergence D = E_Q f(u) the score form is
grad D = E_Q[c grad log Q] with c = f(u) - u f'(u), hence dD/dlogits_V = Q (c - E_Q c). One [..., V] tensor is kept
for the backward pass, and there is no second derivative.

To add a divergence: write one function here and name it in `DIVERGENCES` at the bottom. Its settings are its
keyword-only arguments. If it has no closed gradient, plain autograd through `torch.log_softmax` will do.

Left out: sampled estimators of a KL. For a teacher known by its top k tokens alone, see rlgkd.ops.top_k_bucket.

Sources: Agarwal et al. 2024, arXiv 2306.13649 (GKD: forward, reverse, generalised JSD); Wen et al. 2023, arXiv
2307.15190 (f-distill: total variation); Ko et al. 2024, arXiv 2402.03898 (DistiLLM: skew); Wu et al. 2024, arXiv
2404.02657 (adaptive KL).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._exp import exp, exp_
from rlgkd.ops._gradient import wants_gradient, with_gradient
from rlgkd.ops._registry import Pairwise, bind

Divergence = Pairwise
"""(teacher_logits [..., V], student_logits [..., V]) -> [...], in nats."""


def forward_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(P||Q) = sum_v P log(P/Q): mass-covering, charges the student for what it misses.

    c = -u, so dD/dlogits_V = Q - P. In [0, inf]; inf where the student cannot produce a token of the teacher.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.

    Returns:
        [...], nats per position.

    Raises:
        SettingError: the two shapes differ, or the logits are not floating point.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(forward_kl(teacher, student).item(), 5)
        0.6349
    """
    p_V, q_V, log_u_V = _p_q_log_u(teacher_logits, student_logits)
    value = _times(p_V, log_u_V).sum(-1)
    gradient_V = q_V.sub_(p_V)
    # Both sum to one, so this adds 0; in floats it cancels the rounding of the two log-sum-exps to first order.
    value += gradient_V.sum(-1)
    return with_gradient(student_logits, value, gradient_V) if wants_gradient(student_logits) else value


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(Q||P) = sum_v Q log(Q/P): mode-seeking, charges the student for what the teacher would not write.

    c = -log u, so dD/dlogits_V = Q (log(Q/P) - KL). In [0, inf]; inf, with a gradient that is not finite, where the
    teacher cannot produce a token of the student: suppress such tokens in both.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.

    Returns:
        [...], nats per position.

    Raises:
        SettingError: the two shapes differ, or the logits are not floating point.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(reverse_kl(teacher, student).item(), 5)
        0.67581
    """
    p_V, q_V, log_u_V = _p_q_log_u(teacher_logits, student_logits)
    q_log_u_V = _times(q_V, log_u_V)
    mean_log_u = q_log_u_V.sum(-1)
    value = p_V.sub_(q_V).sum(-1) - mean_log_u  # the first term is 0 but for rounding, as in forward_kl
    if not wants_gradient(student_logits):
        return value
    gradient_V = q_V.mul_(mean_log_u.unsqueeze(-1)).sub_(q_log_u_V)
    return with_gradient(student_logits, value, gradient_V)


def jsd(teacher_logits: Tensor, student_logits: Tensor, *, beta: float, normalized: bool = False) -> Tensor:
    """beta KL(P||M) + (1-beta) KL(Q||M) with M = beta P + (1-beta) Q: the generalised Jensen-Shannon divergence.

    c = (1-beta) log(Q/M). The raw value lies in [0, h(beta)], h(beta) = -beta ln beta - (1-beta) ln(1-beta), and is
    finite always. JSD/beta -> forward KL as beta -> 0, JSD/(1-beta) -> reverse KL as beta -> 1, and
    JSD(beta)(P||Q) = JSD(1-beta)(Q||P). The raw value vanishes at both ends, so it is refused there; `normalized`
    divides by beta (1-beta), which runs from forward KL (beta = 0) to reverse KL (beta = 1) without a jump.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.
        beta: the teacher's weight in the mixture M; in (0, 1), with `normalized` in [0, 1].
        normalized: divide by beta (1-beta).

    Returns:
        [...], nats per position (raw), nats per unit of beta (1-beta) (normalized).

    Raises:
        SettingError: beta outside its range, the two shapes differ, or the logits are not floating point.

    Source: Agarwal et al. 2024, arXiv 2306.13649, Eq. 1 (raw).

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(jsd(teacher, student, beta=0.5).item(), 5)
        0.15136
    """
    if not 0.0 <= beta <= 1.0:  # refuses NaN too
        raise SettingError("beta", beta, "give a number in [0, 1]")
    if beta in (0.0, 1.0):
        if not normalized:
            limit = "forward_kl" if beta == 0.0 else "reverse_kl"
            raise SettingError("beta", beta, f"the raw JSD is 0 there; use {limit}, or normalized=True")
        return (forward_kl if beta == 0.0 else reverse_kl)(teacher_logits, student_logits)

    p_V, q_V, log_u_V = _p_q_log_u(teacher_logits, student_logits)
    log_u_V = _bounded(log_u_V)
    # log(M/Q) = log(1 + beta (u - 1)) and log(M/P) differ by log u. The one that is nearer to 0 is computed, the other
    # follows: exact at P = Q, and accurate relative to beta (to 1-beta) near the ends, where logaddexp would leave
    # a rounding error that `normalized` divides by beta.
    if beta <= 0.5:
        log_m_q_V = log_u_V.exp().sub_(1.0).mul_(beta).log1p_()
        log_m_p_V = torch.sub(log_m_q_V, log_u_V, out=log_u_V)
    else:
        log_m_p_V = log_u_V.neg().exp_().sub_(1.0).mul_(1.0 - beta).log1p_()
        log_m_q_V = log_u_V.add_(log_m_p_V)
    weight_p, weight_q = (1.0 / (1.0 - beta), 1.0 / beta) if normalized else (beta, 1.0 - beta)
    q_log_m_q_V = log_m_q_V.mul_(q_V)
    mean_log_m_q = q_log_m_q_V.sum(-1)
    value = -(weight_p * p_V.mul_(log_m_p_V).sum(-1) + weight_q * mean_log_m_q)
    if not wants_gradient(student_logits):
        return value
    gradient_V = q_V.mul_(mean_log_m_q.unsqueeze(-1)).sub_(q_log_m_q_V).mul_(weight_q)
    return with_gradient(student_logits, value, gradient_V)


def total_variation(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """TV(P, Q) = 1/2 sum_v |P - Q|, symmetric and in [0, 1].

    c = 1/2 sign(Q - P), the subgradient 0 at Q = P.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.

    Returns:
        [...], a probability per position.

    Raises:
        SettingError: the two shapes differ, or the logits are not floating point.

    Source: Wen et al. 2023, arXiv 2307.15190.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(total_variation(teacher, student).item(), 5)
        0.5
    """
    dtype = _check_logits(teacher_logits, student_logits)
    p_V = torch.softmax(teacher_logits.detach(), -1, dtype=dtype)
    q_V = torch.softmax(student_logits.detach(), -1, dtype=dtype)
    difference_V = p_V.neg_().add_(q_V)
    value: Tensor = 0.5 * torch.linalg.vector_norm(difference_V, ord=1, dim=-1)
    if not wants_gradient(student_logits):
        return value
    return with_gradient(student_logits, value, _centred(q_V, difference_V.sign_().mul_(q_V)).mul_(0.5))


def skew_forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(P||M), M = a P + (1-a) Q with a = `skew`: a forward KL that stays finite where the student cannot follow.

    c = -(1-a) P/M. In [0, -ln a]; at a = 0 it is `forward_kl`.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.
        skew: the teacher's weight in the mixture M; in [0, 1).

    Returns:
        [...], nats per position.

    Raises:
        SettingError: skew outside its range, the two shapes differ, or the logits are not floating point.

    Source: Ko et al. 2024, arXiv 2402.03898.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(skew_forward_kl(teacher, student, skew=0.1).item(), 5)
        0.49382
    """
    if _check_skew(skew) == 0.0:
        return forward_kl(teacher_logits, student_logits)
    p_V, q_V, log_u_V = _p_q_log_u(teacher_logits, student_logits)
    log_m_p_V = _bounded(log_u_V).neg_().expm1_().mul_(1.0 - skew).log1p_()
    # The first term is 0 but for rounding, as in forward_kl.
    value = (1.0 - skew) * (q_V - p_V).sum(-1) - p_V.mul_(log_m_p_V).sum(-1)
    if not wants_gradient(student_logits):
        return value
    # c + (1-a), which has the same gradient and is exactly 0 at P = Q
    q_c_V = log_m_p_V.neg_().expm1_().mul_(skew - 1.0).mul_(q_V)
    return with_gradient(student_logits, value, _centred(q_V, q_c_V))


def skew_reverse_kl(teacher_logits: Tensor, student_logits: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(Q||M), M = (1-a) P + a Q with a = `skew`: a reverse KL that stays finite where the teacher forbids a token.

    c = log(Q/M) - a Q/M. In [0, -ln a]; at a = 0 it is `reverse_kl`.

    Arguments, result, errors and source as for `skew_forward_kl`; here `skew` is the student's weight in M.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(skew_reverse_kl(teacher, student, skew=0.1).item(), 5)
        0.50775
    """
    if _check_skew(skew) == 0.0:
        return reverse_kl(teacher_logits, student_logits)
    p_V, q_V, log_u_V = _p_q_log_u(teacher_logits, student_logits)
    log_m_q_V = _bounded(log_u_V).expm1_().mul_(1.0 - skew).log1p_()
    value = (1.0 - skew) * p_V.sub_(q_V).sum(-1) - (q_V * log_m_q_V).sum(-1)
    if not wants_gradient(student_logits):
        return value
    # c + a, which has the same gradient and is exactly 0 at P = Q
    q_c_V = log_m_q_V.neg().expm1_().mul_(-skew).sub_(log_m_q_V).mul_(q_V)
    return with_gradient(student_logits, value, _centred(q_V, q_c_V))


def jeffreys(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P), symmetric: charges for what is missed and for what is made up. In [0, inf].

    Arguments, result and errors as for `forward_kl`.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(jeffreys(teacher, student).item(), 5)
        1.3107
    """
    return _two_kls(student_logits, *_p_q_log_u(teacher_logits, student_logits), forward=1.0, reverse=1.0)


def adaptive_kl(teacher_logits: Tensor, student_logits: Tensor, *, head: float = 0.5) -> Tensor:
    """w KL(P||Q) + (1-w) KL(Q||P), where w is the share of sum_v |P - Q| that lies on the teacher's head.

    The head is the fewest tokens, most probable first, that hold `head` of the teacher's mass. Forward KL fits the head
    first and reverse KL the tail, so each is weighed by where the student is wrong. w is held constant in the gradient.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.
        head: the teacher's mass on its head; in (0, 1).

    Returns:
        [...], nats per position.

    Raises:
        SettingError: head outside its range, the two shapes differ, or the logits are not floating point.

    Source: Wu et al. 2024, arXiv 2404.02657.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(adaptive_kl(teacher, student).item(), 5)  # the head is one token, which holds half of the gap
        0.65535
    """
    if not 0.0 < head < 1.0:
        raise SettingError("head", head, "give a number in (0, 1)")
    p_V, q_V, log_u_V = _p_q_log_u(teacher_logits, student_logits)
    sorted_V, order_V = p_V.sort(dim=-1, descending=True, stable=True)
    in_head_V = sorted_V.cumsum(-1) - sorted_V < head  # the mass of those before it is not enough
    gap_V = (p_V - q_V).abs_().gather(-1, order_V)
    total = gap_V.sum(-1)
    share = torch.where(total > 0, (gap_V * in_head_V).sum(-1) / total, 0.5)
    return _two_kls(student_logits, p_V, q_V, log_u_V, forward=share, reverse=1.0 - share)


def names() -> tuple[str, ...]:
    """Return the names that `get` knows, sorted."""
    return tuple(sorted(DIVERGENCES))


def get(name: str, **settings: float | bool) -> Divergence:
    """Return the divergence of this name with its settings bound.

    Args:
        name: one of `names()`.
        **settings: the keyword-only arguments of that divergence, such as `beta` of `jsd`.

    Returns:
        A function of (teacher_logits, student_logits); it can be pickled.

    Raises:
        SettingError: an unknown name, an unknown or missing setting, or a value outside its range.

    Example:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(get("jsd", beta=0.9)(teacher, student).item(), 5)
        0.0584
    """
    return bind("divergence", name, DIVERGENCES, settings)


def _p_q_log_u(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return P, Q and log(P/Q), detached, in three buffers that the caller owns and may overwrite.

    log(P/Q) is NaN where both logits are -inf and infinite where one is.
    """
    dtype = _check_logits(teacher_logits, student_logits)
    log_p_V = torch.log_softmax(teacher_logits.detach(), -1, dtype=dtype)
    log_q_V = torch.log_softmax(student_logits.detach(), -1, dtype=dtype)
    p_V = exp(log_p_V)
    log_u_V = log_p_V.sub_(log_q_V)
    return p_V, exp_(log_q_V), log_u_V


def _times(probability_V: Tensor, log_V: Tensor) -> Tensor:
    """Return probability * log with 0 * inf = 0; overwrites `log_V`.

    A NaN among the logits is silenced here too, but shows in the sum of the probabilities, which the callers add.
    """
    return log_V.mul_(probability_V).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def _centred(q_V: Tensor, q_c_V: Tensor) -> Tensor:
    """Return dD/dlogits_V = Q (c - E_Q c) from Q and Q c; overwrites both."""
    return q_c_V.sub_(q_V.mul_(q_c_V.sum(-1, keepdim=True)))


def _two_kls(
    student_logits: Tensor, p_V: Tensor, q_V: Tensor, log_u_V: Tensor, *,
    forward: Tensor | float, reverse: Tensor | float,
) -> Tensor:  # fmt: skip
    """Return forward * KL(P||Q) + reverse * KL(Q||P), the weights [...] or numbers; overwrites `log_u_V`."""
    kl_forward = _times(p_V, log_u_V.clone()).sum(-1)
    q_log_u_V = _times(q_V, log_u_V)
    mean_log_u = q_log_u_V.sum(-1)
    excess_V = q_V - p_V  # its sum is 0 but for rounding, as in forward_kl
    rounding = excess_V.sum(-1)
    value = forward * (kl_forward + rounding) - reverse * (mean_log_u + rounding)
    if not wants_gradient(student_logits):
        return value
    forward, reverse = (torch.as_tensor(weight, device=value.device).unsqueeze(-1) for weight in (forward, reverse))
    gradient_V = forward * excess_V + reverse * (q_V * mean_log_u.unsqueeze(-1) - q_log_u_V)
    return with_gradient(student_logits, value, gradient_V)


def _bounded(log_u_V: Tensor) -> Tensor:
    """Return log(P/Q) finite, so that a probability of 0 silences its term; overwrites its argument.

    At |log u| = 80 the smaller of P and Q is below 2e-35 of the larger: nothing that float64 can see in a sum.
    """
    return log_u_V.nan_to_num_(nan=0.0).clamp_(-80.0, 80.0)


def _check_skew(skew: float) -> float:
    if not 0.0 <= skew < 1.0:  # refuses NaN too
        raise SettingError("skew", skew, "give a number in [0, 1)")
    return skew


def _check_logits(teacher_logits: Tensor, student_logits: Tensor) -> torch.dtype:
    """Check shapes and dtypes; return the dtype to compute in, float32 or better."""
    if teacher_logits.ndim == 0 or teacher_logits.shape[-1] == 0:
        raise SettingError("teacher_logits.shape", tuple(teacher_logits.shape), "give [..., V] with V of 1 or more")
    if teacher_logits.shape != student_logits.shape:
        remedy = f"give the teacher's shape {tuple(teacher_logits.shape)}: same positions, same vocabulary"
        raise SettingError("student_logits.shape", tuple(student_logits.shape), remedy)
    for field, logits in (("teacher_logits", teacher_logits), ("student_logits", student_logits)):
        if not logits.is_floating_point():
            raise SettingError(f"{field}.dtype", logits.dtype, "give floating-point logits, not token ids")
    return torch.promote_types(torch.promote_types(teacher_logits.dtype, student_logits.dtype), torch.float32)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "total_variation": total_variation,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "jeffreys": jeffreys,
    "adaptive_kl": adaptive_kl,
}
