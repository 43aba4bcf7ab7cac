"""Losses per action whose gradient is a policy gradient, and the entropy of a policy.

Where a batch is used for more than one update, the policy has moved from the one that sampled it. The ratio rho_n =
pi(y_n) / old(y_n), from the log-probabilities recorded in sampling, measures how far; at rho = 1 all losses here have
the gradient of `reinforce`.

To add a policy loss: write one function (logp_N, old_logp_N, advantage_N) -> loss_N here (without `old_logp_N` if it
has no ratio) and name it in `POLICY_LOSSES` at the bottom. Its settings are its keyword-only arguments, each with one
sentence in its docstring's `Args`.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._exp import exp, exp_
from rlgkd.ops._gradient import wants_gradient, with_gradient
from rlgkd.ops._registry import bind, check_name, keywords

PolicyLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logp_N, old_logp_N, advantage_N) -> loss_N."""


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

    Examples:
        >>> reinforce(torch.tensor([-0.5, -2.0]), torch.tensor([1.0, -1.0])).tolist()
        [0.5, -2.0]
    """
    if logp_N.shape != advantage_N.shape:
        raise SettingError("advantage_N.shape", tuple(advantage_N.shape), f"give logp_N's, {tuple(logp_N.shape)}")
    return -advantage_N.detach() * logp_N


def clipped(
    logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """loss_n = -min(rho A, clip(rho, 1-low, 1+high) A): no gradient where rho has gone far enough in A's direction.

    Args:
        logp_N: [N], log-probability of each action in nats, with its gradient.
        old_logp_N: [N], the same under the policy that sampled the actions; a constant.
        advantage_N: [N], a constant.
        clip_low: How far below 1 the ratio may fall while the advantage is negative, in [0, 1].
        clip_high: How far above 1 the ratio may rise while the advantage is positive, 0 or more; DAPO's is above
            `clip_low`.

    Returns:
        [N], the negative of the surrogate's value.

    Raises:
        SettingError: the shapes differ, or a bound is out of range.

    Source: Schulman et al. 2017, arXiv 1707.06347 (PPO); Yu et al. 2025, arXiv 2503.14476 (DAPO: two bounds).

    Examples:
        >>> logp = torch.tensor([0.5, 0.5, 1.5]).log().requires_grad_()
        >>> loss = clipped(logp, torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]))
        >>> loss.tolist()  # the second may not fall below 0.8, the third has risen beyond 1.2
        [-0.5, 0.800000011920929, -1.2000000476837158]
        >>> loss.sum().backward()
        >>> logp.grad.tolist()
        [-0.5, 0.0, 0.0]
    """
    if not 0.0 <= clip_low <= 1.0:
        raise SettingError("clip_low", clip_low, "give a number in [0, 1]")
    rho_N = _ratio(logp_N, old_logp_N, advantage_N, clip_high)
    advantage_N = advantage_N.detach()
    return -torch.minimum(rho_N * advantage_N, rho_N.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage_N)


def clipped_weight(logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, *, clip_high: float = 4.0) -> Tensor:
    """loss_n = -stop_gradient(min(rho, 1+high) A) log pi(y_n): every action keeps a gradient, only the weight is cut.

    If another engine sampled, rho corrects for it, and 1+high is the truncation C of the importance weight.

    Args:
        logp_N: [N], log-probability of each action in nats, with its gradient.
        old_logp_N: [N], the same under the policy that sampled the actions; a constant.
        advantage_N: [N], a constant.
        clip_high: How far above 1 the ratio may weigh an action, 0 or more.

    Returns:
        [N]; the value means nothing, the gradient does.

    Raises:
        SettingError: the shapes differ, or clip_high is out of range.

    Source: MiniMax 2025, arXiv 2506.13585 (CISPO).

    Examples:
        >>> logp = torch.tensor([0.5, 1.5, 9.0]).log().requires_grad_()
        >>> clipped_weight(logp, torch.zeros(3), torch.ones(3), clip_high=1.0).sum().backward()
        >>> logp.grad.tolist()
        [-0.5, -1.5, -2.0]
    """
    weight_N = _ratio(logp_N, old_logp_N, advantage_N, clip_high).clamp(max=1.0 + clip_high)
    return reinforce(logp_N, weight_N * advantage_N)


def value_loss(value_N: Tensor, old_value_N: Tensor, return_N: Tensor, *, clip: float | None = None) -> Tensor:
    """loss_n = 1/2 (V - R)^2, or the larger of that and the same with V clipped to within `clip` of its old value.

    Args:
        value_N: [N], with its gradient.
        old_value_N: [N], the value at the time of sampling; a constant.
        return_N: [N], the target; a constant.
        clip: 0 or more; None does not clip.

    Returns:
        [N].

    Raises:
        SettingError: the shapes differ, or clip below 0.

    Source: Schulman et al. 2017, arXiv 1707.06347; the clipping is that of its authors' code (Engstrom et al. 2020,
    arXiv 2005.12729).

    Examples:
        >>> value_loss(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([2.5]), clip=0.5).tolist()
        [0.5]
    """
    if not value_N.shape == old_value_N.shape == return_N.shape:
        shapes = tuple(map(tuple, (value_N.shape, old_value_N.shape, return_N.shape)))
        raise SettingError("value_N.shape", shapes, "give three of the same shape")
    if clip is None:
        return 0.5 * (value_N - return_N.detach()).square()
    if not clip >= 0.0:
        raise SettingError("clip", clip, "give 0 or more, or None")
    clipped_N = old_value_N.detach() + (value_N - old_value_N.detach()).clamp(-clip, clip)
    error_N = (value_N - return_N.detach()).square()
    clipped_error_N = (clipped_N - return_N.detach()).square()
    return 0.5 * torch.maximum(error_N, clipped_error_N)


def get(name: str, **settings: float) -> PolicyLoss:
    """Return the policy loss of this name with its settings bound; it can be pickled.

    Args:
        name: A key of `POLICY_LOSSES`.
        **settings: The keyword-only arguments of that loss, such as `clip_low` of `clipped`.

    Returns:
        A function of (logp_N, old_logp_N, advantage_N); `reinforce` ignores the second.

    Raises:
        SettingError: an unknown name, an unknown setting, or a value outside its range.

    Examples:
        >>> get("clipped", clip_high=0.5)(torch.tensor([0.7]), torch.zeros(1), torch.ones(1)).tolist()
        [-1.5]
    """
    function = POLICY_LOSSES[check_name("policy_loss", name, POLICY_LOSSES)]
    if "old_logp_N" in keywords(function):
        return bind("policy_loss", name, POLICY_LOSSES, settings, tensors=3)
    return functools.partial(_without_ratio, bind("policy_loss", name, POLICY_LOSSES, settings))


def _without_ratio(
    loss: Callable[[Tensor, Tensor], Tensor], logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor
) -> Tensor:
    return loss(logp_N, advantage_N)


def _ratio(logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, clip_high: float) -> Tensor:
    """Return rho_N = pi(y_n) / old(y_n)."""
    if not clip_high >= 0.0:
        raise SettingError("clip_high", clip_high, "give 0 or more")
    for field, values_N in (("old_logp_N", old_logp_N), ("advantage_N", advantage_N)):
        if logp_N.shape != values_N.shape:
            raise SettingError(f"{field}.shape", tuple(values_N.shape), f"give logp_N's, {tuple(logp_N.shape)}")
    return (logp_N - old_logp_N.detach()).clamp(max=80.0).exp()  # infinity times an advantage of 0 would be NaN


def log_probability(logits_NV: Tensor, action_N: Tensor) -> Tensor:
    """log p(y_n) of the chosen tokens: [N, V], [N] -> [N], in nats.

    Without a gradient no second tensor of shape [N, V] is allocated.

    Examples:
        >>> round(log_probability(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).exp().item(), 4)
        0.5
    """
    if not wants_gradient(logits_NV):
        return logits_NV.gather(-1, action_N[:, None])[:, 0] - torch.logsumexp(logits_NV, -1)
    log_p_NV = _log_softmax(logits_NV)
    logp_N = log_p_NV.gather(-1, action_N[:, None])[:, 0]
    return with_gradient(logits_NV, logp_N, _logp_gradient(exp_(log_p_NV), action_N))


def entropy(logits: Tensor) -> Tensor:
    """H(pi) = -sum_v pi log pi, with dH/dlogits_V = -pi (log pi + H).

    A token of probability 0 (a logit of -inf) contributes nothing, neither to the value nor to the gradient.

    Args:
        logits: [..., V], any floating dtype; computed in float32 or better.

    Returns:
        [...], nats, in [0, ln V].

    Raises:
        SettingError: not [..., V] floating point.

    Examples:
        >>> round(entropy(torch.zeros(4)).exp().item(), 4)
        4.0
    """
    if logits.ndim == 0 or logits.shape[-1] == 0 or not logits.is_floating_point():
        raise SettingError("logits", (tuple(logits.shape), logits.dtype), "give [..., V] floating-point logits")
    value, p_V, p_log_p_V = _entropy_and_factors(_log_softmax(logits))
    if not wants_gradient(logits):
        return value
    return with_gradient(logits, value, _entropy_gradient(value, p_V, p_log_p_V))


def log_probability_and_entropy(
    logits_NV: Tensor, action_N: Tensor, *, entropy_gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """`log_probability` and `entropy`, both [N] in nats, from one softmax: a third of the passes over [N, V].

    Without `entropy_gradient` the entropy is a constant, which saves one tensor of shape [N, V].

    Examples:
        >>> logp, entropy = log_probability_and_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> round(logp.exp().item(), 4), round(entropy.exp().item(), 4)
        (0.5, 2.0)
    """
    log_p_NV = _log_softmax(logits_NV)
    logp_N = log_p_NV.gather(-1, action_N[:, None])[:, 0]
    entropy_N, p_NV, p_log_p_NV = _entropy_and_factors(log_p_NV)
    if not wants_gradient(logits_NV):
        return logp_N, entropy_N
    if entropy_gradient:
        entropy_N = with_gradient(logits_NV, entropy_N, _entropy_gradient(entropy_N, p_NV.clone(), p_log_p_NV))
    return with_gradient(logits_NV, logp_N, _logp_gradient(p_NV, action_N)), entropy_N


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.detach(), -1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _entropy_and_factors(log_p_V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return H, p and p log p, of which the last overwrites `log_p_V`."""
    p_V = exp(log_p_V)
    p_log_p_V = log_p_V.clamp_(min=torch.finfo(log_p_V.dtype).min).mul_(p_V)  # finite, so that 0 log 0 is 0
    return -p_log_p_V.sum(-1), p_V, p_log_p_V


def _logp_gradient(p_NV: Tensor, action_N: Tensor) -> Tensor:
    """Return d log p(y_n)/dlogits_V = 1[v = y_n] - p; overwrites `p_NV`."""
    return p_NV.neg_().scatter_add_(-1, action_N[:, None], torch.ones_like(p_NV[:, :1]))


def _entropy_gradient(value: Tensor, p_V: Tensor, p_log_p_V: Tensor) -> Tensor:
    """Return dH/dlogits_V = -p (log p + H); overwrites `p_V` and `p_log_p_V`."""
    return p_log_p_V.add_(p_V.mul_(value.unsqueeze(-1))).neg_()


POLICY_LOSSES: dict[str, Callable[..., Tensor]] = {
    "reinforce": reinforce,
    "clipped": clipped,
    "clipped_weight": clipped_weight,
}
