"""Divergences between teacher and student over the full vocabulary.

P = p_T = softmax(teacher_logits), Q = p_S = softmax(student_logits), u = P/Q. Always (teacher, student), always in
nats per position: [..., V], [..., V] -> [...]. Computed in float32 or better, so bfloat16 logits give float32 values.

Conventions. 0 log 0 = 0: a token of probability 0 on both sides (logits of -inf, or underflow) contributes nothing,
neither to the value nor to the gradient. A token that only one side can generate makes the KL that penalises it
infinite, as it should. The teacher is a constant: only the student's logits receive a gradient.

The gradient has a closed form and is not recorded by autograd. For an f-divergence D = E_Q f(u) the score form is
grad D = E_Q[c grad log Q] with c = f(u) - u f'(u), hence dD/dlogits_V = Q (c - E_Q c). One [..., V] tensor is kept
for the backward pass, and there is no second derivative.

To add a divergence: write one function here and name it in `DIVERGENCES` at the bottom. Its settings are its
keyword-only arguments, each with one sentence in its docstring's `Args`. If its gradient has no closed form, plain
autograd through `torch.log_softmax` will do.

Not here: sampled estimators of a KL (rlgkd.objective). For a teacher of which only the top k tokens are known, see
rlgkd.ops.top_k_bucket.

Sources: Agarwal et al. 2024, arXiv 2306.13649 (GKD: forward, reverse, generalised JSD); Wen et al. 2023, arXiv
2307.15190 (f-distill: total variation); Ko et al. 2024, arXiv 2402.03898 (DistiLLM: skew); Wu et al. 2024, arXiv
2404.02657 (adaptive KL).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._gradient import wants_gradient, with_gradient
from rlgkd.ops._log_ratio import (
    checked_dtype,
    clamped_log_ratio,
    probabilities_and_log_ratio,
    score_gradient,
    weighted_log,
)
from rlgkd.ops._registry import Pairwise, bind

Divergence = Pairwise
"""(teacher_logits [..., V], student_logits [..., V]) -> [...], in nats."""


def forward_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(P||Q) = sum_v P log(P/Q): mass-covering, penalises the student for tokens that it misses.

    c = -u, so dD/dlogits_V = Q - P. In [0, inf]; inf where the student cannot generate a token that the teacher can.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.

    Returns:
        [...], nats per position.

    Raises:
        SettingError: the two shapes differ, or the logits are not floating point.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(forward_kl(teacher, student).item(), 5)
        0.6349
    """
    p_V, q_V, log_u_V = probabilities_and_log_ratio(teacher_logits, student_logits)
    value = weighted_log(p_V, log_u_V).sum(-1)
    gradient_V = q_V.sub_(p_V)
    # P and Q both sum to 1, so this adds 0; in floats it cancels the rounding of the two log-sum-exps to first order.
    value += gradient_V.sum(-1)
    return with_gradient(student_logits, value, gradient_V) if wants_gradient(student_logits) else value


def reverse_kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(Q||P) = sum_v Q log(Q/P): mode-seeking, penalises tokens that the teacher would not generate.

    c = -log u, so dD/dlogits_V = Q (log(Q/P) - KL). In [0, inf]; inf, with a gradient that is not finite, where the
    teacher cannot generate a token that the student can: suppress such tokens in both.

    Arguments, result and errors as for `forward_kl`.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(reverse_kl(teacher, student).item(), 5)
        0.67581
    """
    p_V, q_V, log_u_V = probabilities_and_log_ratio(teacher_logits, student_logits)
    q_log_u_V = weighted_log(q_V, log_u_V)
    mean_log_u = q_log_u_V.sum(-1)
    value = p_V.sub_(q_V).sum(-1) - mean_log_u  # the first term is 0 except for rounding, as in forward_kl
    if not wants_gradient(student_logits):
        return value
    gradient_V = q_V.mul_(mean_log_u.unsqueeze(-1)).sub_(q_log_u_V)
    return with_gradient(student_logits, value, gradient_V)


def jsd(teacher_logits: Tensor, student_logits: Tensor, *, beta: float, normalized: bool = False) -> Tensor:
    """beta KL(P||M) + (1-beta) KL(Q||M) with M = beta P + (1-beta) Q: the generalised Jensen-Shannon divergence.

    c = (1-beta) log(Q/M). The raw value lies in [0, h(beta)], h(beta) = -beta ln beta - (1-beta) ln(1-beta), and is
    always finite. JSD/beta -> forward KL as beta -> 0, JSD/(1-beta) -> reverse KL as beta -> 1, and
    JSD(beta)(P||Q) = JSD(1-beta)(Q||P). The raw value vanishes at both ends, so they are refused; `normalized`
    divides by beta (1-beta), which is continuous from forward KL (beta = 0) to reverse KL (beta = 1).

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.
        beta: The teacher's weight in the mixture, in (0, 1), or [0, 1] if normalized; near 0 like forward KL, near 1
            like reverse.
        normalized: Divide by beta (1 - beta), so that a sweep over beta keeps its scale.

    Returns:
        [...], nats per position (raw), nats per unit of beta (1-beta) (normalized).

    Raises:
        SettingError: beta outside its range, the two shapes differ, or the logits are not floating point.

    Source: Agarwal et al. 2024, arXiv 2306.13649, Eq. 1 (raw).

    Examples:
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

    p_V, q_V, log_u_V = probabilities_and_log_ratio(teacher_logits, student_logits)
    log_u_V = clamped_log_ratio(log_u_V)
    # log(M/Q) = log(1 + beta (u - 1)) and log(M/P) differ by log u. The one nearer to 0 is computed and the other
    # derived from it: exact at P = Q, and accurate relative to beta (to 1-beta) near the ends, where logaddexp would
    # leave a rounding error that `normalized` divides by beta.
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

    Arguments and errors as for `forward_kl`; the result is a probability per position.

    Source: Wen et al. 2023, arXiv 2307.15190.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(total_variation(teacher, student).item(), 5)
        0.5
    """
    dtype = checked_dtype(teacher_logits, student_logits)
    p_V = torch.softmax(teacher_logits.detach(), -1, dtype=dtype)
    q_V = torch.softmax(student_logits.detach(), -1, dtype=dtype)
    difference_V = p_V.neg_().add_(q_V)
    value: Tensor = 0.5 * torch.linalg.vector_norm(difference_V, ord=1, dim=-1)
    if not wants_gradient(student_logits):
        return value
    gradient_V = score_gradient(q_V, difference_V.sign_().mul_(q_V)).mul_(0.5)
    return with_gradient(student_logits, value, gradient_V)


def skew_forward_kl(teacher_logits: Tensor, student_logits: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(P||M), M = a P + (1-a) Q with a = `skew`: a forward KL that stays finite where the student has no mass.

    c = -(1-a) P/M. In [0, -ln a]; at a = 0 it is `forward_kl`.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.
        skew: The teacher's weight in the mixture, in [0, 1); 0 is the forward KL.

    Result and errors as for `forward_kl`; also SettingError for `skew` outside its range.

    Source: Ko et al. 2024, arXiv 2402.03898.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(skew_forward_kl(teacher, student, skew=0.1).item(), 5)
        0.49382
    """
    _check_skew(skew)
    if skew == 0.0:
        return forward_kl(teacher_logits, student_logits)
    p_V, q_V, log_u_V = probabilities_and_log_ratio(teacher_logits, student_logits)
    log_m_p_V = clamped_log_ratio(log_u_V).neg_().expm1_().mul_(1.0 - skew).log1p_()
    # The first term is 0 except for rounding, as in forward_kl.
    value = (1.0 - skew) * (q_V - p_V).sum(-1) - p_V.mul_(log_m_p_V).sum(-1)
    if not wants_gradient(student_logits):
        return value
    # c + (1-a), which has the same gradient and is exactly 0 at P = Q
    q_c_V = log_m_p_V.neg_().expm1_().mul_(skew - 1.0).mul_(q_V)
    return with_gradient(student_logits, value, score_gradient(q_V, q_c_V))


def skew_reverse_kl(teacher_logits: Tensor, student_logits: Tensor, *, skew: float = 0.1) -> Tensor:
    """KL(Q||M), M = (1-a) P + a Q with a = `skew`: a reverse KL that stays finite where the teacher forbids a token.

    c = log(Q/M) - a Q/M. In [0, -ln a]; at a = 0 it is `reverse_kl`.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.
        skew: The student's weight in the mixture, in [0, 1); 0 is the reverse KL.

    Result, errors and source as for `skew_forward_kl`.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(skew_reverse_kl(teacher, student, skew=0.1).item(), 5)
        0.50775
    """
    _check_skew(skew)
    if skew == 0.0:
        return reverse_kl(teacher_logits, student_logits)
    p_V, q_V, log_u_V = probabilities_and_log_ratio(teacher_logits, student_logits)
    log_m_q_V = clamped_log_ratio(log_u_V).expm1_().mul_(1.0 - skew).log1p_()
    value = (1.0 - skew) * p_V.sub_(q_V).sum(-1) - (q_V * log_m_q_V).sum(-1)
    if not wants_gradient(student_logits):
        return value
    # c + a, which has the same gradient and is exactly 0 at P = Q
    q_c_V = log_m_q_V.neg().expm1_().mul_(-skew).sub_(log_m_q_V).mul_(q_V)
    return with_gradient(student_logits, value, score_gradient(q_V, q_c_V))


def jeffreys(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(P||Q) + KL(Q||P), symmetric: penalises tokens that are missed and tokens that are made up. In [0, inf].

    Arguments, result and errors as for `forward_kl`.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(jeffreys(teacher, student).item(), 5)
        1.3107
    """
    p_V, q_V, log_u_V = probabilities_and_log_ratio(teacher_logits, student_logits)
    return _mixed_kls(student_logits, p_V, q_V, log_u_V, forward=1.0, reverse=1.0)


def adaptive_kl(teacher_logits: Tensor, student_logits: Tensor, *, head: float = 0.5) -> Tensor:
    """w KL(P||Q) + (1-w) KL(Q||P), where w is the share of sum_v |P - Q| that lies on the teacher's head.

    The head is the fewest tokens, most probable first, that hold `head` of the teacher's mass. Forward KL fits the head
    first and reverse KL the tail, so each is weighted by where the student is wrong. w is constant in the gradient.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape.
        head: The share of the teacher's mass that counts as its head, in (0, 1).

    Result and errors as for `forward_kl`; also SettingError for `head` outside its range.

    Source: Wu et al. 2024, arXiv 2404.02657.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(adaptive_kl(teacher, student).item(), 5)  # the head is one token, with half of the gap
        0.65535
    """
    if not 0.0 < head < 1.0:
        raise SettingError("head", head, "give a number in (0, 1)")
    p_V, q_V, log_u_V = probabilities_and_log_ratio(teacher_logits, student_logits)
    sorted_V, order_V = p_V.sort(dim=-1, descending=True, stable=True)
    in_head_V = sorted_V.cumsum(-1) - sorted_V < head  # True as long as the tokens before it hold less than `head`
    gap_V = (p_V - q_V).abs_().gather(-1, order_V)
    total = gap_V.sum(-1)
    share = torch.where(total > 0, (gap_V * in_head_V).sum(-1) / total, 0.5)
    return _mixed_kls(student_logits, p_V, q_V, log_u_V, forward=share, reverse=1.0 - share)


def names() -> tuple[str, ...]:
    """Return the names that `get` knows, sorted."""
    return tuple(sorted(DIVERGENCES))


def get(name: str, **settings: float | bool) -> Divergence:
    """Return the divergence of this name with its settings bound.

    Args:
        name: One of `names()`.
        **settings: The keyword-only arguments of that divergence, such as `beta` of `jsd`.

    Returns:
        A function of (teacher_logits, student_logits); it can be pickled.

    Raises:
        SettingError: an unknown name, an unknown or missing setting, or a value outside its range.

    Examples:
        >>> teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
        >>> round(get("jsd", beta=0.9)(teacher, student).item(), 5)
        0.0584
    """
    return bind("divergence", name, DIVERGENCES, settings, reduces=True)


def greatest(divergence: Divergence) -> float:
    """Return what a divergence is at most, in nats: that of two distributions without a common token.

    Thousands where it has no bound.

    Examples:
        >>> round(greatest(get("jsd", beta=0.5)), 4), greatest(total_variation)
        (0.6931, 1.0)
    """
    return float(divergence(torch.tensor([1e4, 0.0]), torch.tensor([0.0, 1e4])))


def _mixed_kls(
    student_logits: Tensor,
    p_V: Tensor,
    q_V: Tensor,
    log_u_V: Tensor,
    *,
    forward: Tensor | float,
    reverse: Tensor | float,
) -> Tensor:
    """Return forward * KL(P||Q) + reverse * KL(Q||P), the weights [...] or numbers; overwrites `log_u_V`."""
    kl_forward = weighted_log(p_V, log_u_V.clone()).sum(-1)
    q_log_u_V = weighted_log(q_V, log_u_V)
    mean_log_u = q_log_u_V.sum(-1)
    difference_V = q_V - p_V  # its sum is 0 except for rounding, as in forward_kl
    rounding = difference_V.sum(-1)
    value = forward * (kl_forward + rounding) - reverse * (mean_log_u + rounding)
    if not wants_gradient(student_logits):
        return value
    forward = torch.as_tensor(forward, device=value.device).unsqueeze(-1)
    reverse = torch.as_tensor(reverse, device=value.device).unsqueeze(-1)
    gradient_V = forward * difference_V + reverse * (q_V * mean_log_u.unsqueeze(-1) - q_log_u_V)
    return with_gradient(student_logits, value, gradient_V)


def _check_skew(skew: float) -> None:
    if not 0.0 <= skew < 1.0:  # refuses NaN too
        raise SettingError("skew", skew, "give a number in [0, 1)")


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
