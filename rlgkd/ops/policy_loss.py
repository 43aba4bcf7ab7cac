"""Losses per action whose gradient is a policy gradient, and the entropy of a policy.

Left out so far: ratios to an older policy and their clipping (PPO, GSPO, CISPO).
"""

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._gradient import wants_gradient, with_gradient


def reinforce(logp_N: Tensor, advantage_N: Tensor) -> Tensor:
    """loss_n = -stop_gradient(A_n) log pi(y_n): its gradient is minus the policy gradient's term.

    Args:
        logp_N: [N], log-probability of each action in nats, with its gradient.
        advantage_N: [N], a constant.

    Returns:
        [N]; the value means nothing, the gradient does.

    Raises:
        SettingError: the shapes differ.

    Source: Williams 1992, "Simple statistical gradient-following algorithms".

    Example:
        >>> reinforce(torch.tensor([-0.5, -2.0]), torch.tensor([1.0, -1.0])).tolist()
        [0.5, -2.0]
    """
    if logp_N.shape != advantage_N.shape:
        raise SettingError("advantage_N.shape", tuple(advantage_N.shape), f"give that of logp_N, {tuple(logp_N.shape)}")
    return -advantage_N.detach() * logp_N


def entropy(logits: Tensor) -> Tensor:
    """H(pi) = -sum_v pi log pi, with dH/dlogits_V = -pi (log pi + H).

    A token of probability 0 (a logit of -inf) contributes nothing, neither to the value nor to the gradient.

    Args:
        logits: [..., V], any floating dtype; computed in float32 or better.

    Returns:
        [...], nats, in [0, ln V].

    Raises:
        SettingError: not [..., V] floating point.

    Example:
        >>> round(entropy(torch.zeros(4)).exp().item(), 4)
        4.0
    """
    if logits.ndim == 0 or logits.shape[-1] == 0 or not logits.is_floating_point():
        raise SettingError("logits", (tuple(logits.shape), logits.dtype), "give [..., V] floating-point logits")
    log_p_V = torch.log_softmax(logits.detach(), -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    p_V = log_p_V.exp()
    p_log_p_V = log_p_V.mul_(p_V).masked_fill_(p_V == 0.0, 0.0)
    value = -p_log_p_V.sum(-1)
    if not wants_gradient(logits):
        return value
    gradient_V = p_log_p_V.add_(p_V.mul_(value.unsqueeze(-1))).neg_()
    return with_gradient(logits, value, gradient_V)
