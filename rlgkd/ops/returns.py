"""From rewards to returns and advantages.

NaN is the reward of a sample whose grader failed: it gets the advantage 0 and takes no part in the baseline of the
others.

To add an advantage: write one function [P, G] -> [P, G] here and name it in `ADVANTAGES` at the bottom.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._registry import check_name


def discounted_returns(reward_BT: Tensor, gamma: float, mask_BT: Tensor) -> Tensor:
    """G_n = sum_{m >= n} gamma^(m-n) r_m, where n and m count a row's actions.

    Steps outside the mask are no actions: what stands there is ignored, NaN included, and they do not discount, so
    tokens that a multi-turn environment puts in between leave the returns as they are. The return *after* the
    action, sum_{m > n}, is G - r.

    Args:
        reward_BT: [B, T], the reward of each action.
        gamma: the discount per action, in [0, 1].
        mask_BT: [B, T], bool; True at actions.

    Returns:
        [B, T], in the dtype of the rewards (float32 or better); 0 outside the mask.

    Raises:
        SettingError: gamma outside [0, 1], the shapes differ, or the mask is not bool.

    Source: Sutton and Barto 2018, Eq. 3.8; the log2(T) steps are Hillis and Steele's scan (1986).

    Example:
        >>> discounted_returns(torch.tensor([[1.0, 9.0, 4.0]]), 0.5, torch.tensor([[True, False, True]])).tolist()
        [[3.0, 0.0, 4.0]]
    """
    if not 0.0 <= gamma <= 1.0:
        raise SettingError("gamma", gamma, "give a number in [0, 1]")
    if reward_BT.ndim != 2 or reward_BT.shape != mask_BT.shape:
        raise SettingError("mask_BT.shape", tuple(mask_BT.shape), f"give [B, T] as reward_BT, {tuple(reward_BT.shape)}")
    if mask_BT.dtype != torch.bool:
        raise SettingError("mask_BT.dtype", mask_BT.dtype, "give a bool mask")
    # G_t = r_t + d_t G_{t+1}, with r = 0 and d = 1 outside the mask; each step doubles how far ahead both reach.
    dtype = torch.promote_types(reward_BT.dtype, torch.float32)
    return_BT = reward_BT.to(dtype).masked_fill(~mask_BT, 0.0)
    if gamma == 0.0:  # 0 * inf is no number, and a horizon of 0 must not see the future
        return return_BT
    discount_BT = torch.ones_like(return_BT).masked_fill(mask_BT, gamma)
    reach = 1
    while reach < reward_BT.shape[1]:
        ahead_BT = discount_BT[:, :-reach] * return_BT[:, reach:]
        return_BT = torch.cat([return_BT[:, :-reach] + ahead_BT, return_BT[:, -reach:]], dim=1)
        ahead_BT = discount_BT[:, :-reach] * discount_BT[:, reach:]
        discount_BT = torch.cat([ahead_BT, discount_BT[:, -reach:]], dim=1)
        reach *= 2
    return return_BT.masked_fill(~mask_BT, 0.0)


def gae(reward_BT: Tensor, value_BT: Tensor, lam: float, mask_BT: Tensor) -> Tensor:
    """A_n = sum_{m >= n} lambda^(m-n) (r_m + V_{m+1} - V_m), the generalised advantage estimate at gamma 1.

    n and m count a row's actions; behind the last one there is no value. At lambda 1 it is the return less V_n.

    Args:
        reward_BT: [B, T], the reward of each action.
        value_BT: [B, T], the value of the state before each action; a constant.
        lam: lambda in [0, 1].
        mask_BT: [B, T], bool; True at actions. A row's actions must be adjacent.

    Returns:
        [B, T]; 0 outside the mask. The target of the value function is A + V.

    Raises:
        SettingError: as `discounted_returns`, or actions with a gap between them.

    Source: Schulman et al. 2016, arXiv 1506.02438, Eq. 16.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> gae(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.25, 9.0]]), 0.5, mask).tolist()
        [[0.125, 0.75, 0.0]]
    """
    if (mask_BT[:, 1:] & ~mask_BT[:, :-1]).sum(1).add(mask_BT[:, 0]).gt(1).any():
        raise SettingError("mask_BT", "gap", "give rows whose actions are adjacent")
    value_BT = value_BT.detach().masked_fill(~mask_BT, 0.0)
    after_BT = torch.cat([value_BT[:, 1:], value_BT.new_zeros(len(value_BT), 1)], dim=1)
    return discounted_returns(reward_BT + after_BT - value_BT, lam, mask_BT)


def overlong_penalty(length_B: Tensor, limit: int, buffer: int) -> Tensor:
    """0 up to `limit - buffer` tokens, then falling linearly to -1 at `limit`: what is added to the reward.

    Args:
        length_B: [B], tokens of each completion.
        limit: the most a completion may have.
        buffer: tokens over which the penalty grows, in [1, limit].

    Returns:
        [B], float64, in [-1, 0].

    Raises:
        SettingError: buffer out of range.

    Source: Yu et al. 2025, arXiv 2503.14476, Eq. 13 (DAPO); no text is longer than the limit here.

    Example:
        >>> overlong_penalty(torch.tensor([4, 8, 9, 10]), limit=10, buffer=4).tolist()
        [0.0, -0.5, -0.75, -1.0]
    """
    if not 1 <= buffer <= limit:
        raise SettingError("overlong_buffer", buffer, f"give 1 to {limit}, the length limit")
    return (limit - buffer - length_B.double()).clamp(max=0.0) / buffer


def leave_one_out(reward_PG: Tensor) -> Tensor:
    """A_i = r_i - mean of the others = G/(G-1) (r_i - mean): the baseline is independent of y_i, hence unbiased.

    Args:
        reward_PG: [P, G], finite or NaN (no reward: see the head of this file).

    Returns:
        [P, G], in the dtype of the rewards (float32 or better), each group summing to 0; 0 for a group with fewer than
        two rewards, and exactly 0 where all rewards of a group are equal.

    Raises:
        SettingError: G below 2, not [P, G], or an infinite reward.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; Ahmadian et al. 2024,
    arXiv 2402.14740 (RLOO).

    Example:
        >>> leave_one_out(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, float("nan")]])).tolist()
        [[1.0, -0.5, -0.5], [1.0, -1.0, 0.0]]
    """
    excess_PG, count_P1 = _excess(reward_PG)
    return excess_PG / (count_P1 - 1.0).clamp(min=1.0)


def mean_baseline(reward_PG: Tensor) -> Tensor:
    """A_i = r_i - mean of the group, y_i included: (G-1)/G times `leave_one_out`.

    Arguments, result and errors as for `leave_one_out`. Source: Liu et al. 2025, arXiv 2503.20783 (Dr. GRPO).

    Example:
        >>> mean_baseline(torch.tensor([[3.0, 0.0, 0.0]])).tolist()
        [[2.0, -1.0, -1.0]]
    """
    excess_PG, count_P1 = _excess(reward_PG)
    return excess_PG / count_P1.clamp(min=1.0)


def raw(reward_PG: Tensor) -> Tensor:
    """A_i = r_i: no baseline, and the policy gradient at its noisiest. G may be 1.

    Arguments, result and errors as for `leave_one_out`.

    Example:
        >>> raw(torch.tensor([[3.0], [float("nan")]])).tolist()
        [[3.0], [0.0]]
    """
    _check(reward_PG, least=1)
    return reward_PG.to(torch.promote_types(reward_PG.dtype, torch.float32)).nan_to_num(nan=0.0)


def group_normalised(reward_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean) / (std + 1e-4), over the group, with the n-1 of the sample standard deviation.

    Every prompt then moves the policy alike, however small its differences: biased towards very easy and very hard
    prompts. The 1e-4 keeps a learned reward's last digits from being blown up.

    Arguments, result and errors as for `leave_one_out`. Source: Shao et al. 2024, arXiv 2402.03300 (GRPO).

    Example:
        >>> group_normalised(torch.tensor([[2.0, 0.0, 1.0], [0.1, 0.1, 0.1]])).round(decimals=3).tolist()
        [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    excess_PG = mean_baseline(reward_PG)
    count_P1 = (~reward_PG.isnan()).sum(-1, keepdim=True)
    std_P1 = (excess_PG.square().sum(-1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    return excess_PG / (std_P1 + 1e-4)


def batch_normalised(reward_PG: Tensor) -> Tensor:
    """A = (r - mean) / (std + 1e-4), as `group_normalised` but over the whole batch. G may be 1.

    Arguments, result and errors as for `leave_one_out`. Source: Hu et al. 2025, arXiv 2501.03262 (REINFORCE++).

    Example:
        >>> batch_normalised(torch.tensor([[2.0], [0.0], [1.0]])).round(decimals=3).tolist()
        [[1.0], [-1.0], [0.0]]
    """
    _check(reward_PG, least=1)
    return group_normalised(reward_PG.reshape(1, -1)).reshape(reward_PG.shape)


def _excess(reward_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Return (G r - sum over the valid [P, G], with G the number of valid [P, 1]); 0 where invalid or alone."""
    _check(reward_PG, least=2)
    reward_PG = reward_PG.to(torch.promote_types(reward_PG.dtype, torch.float32))
    valid_PG = ~reward_PG.isnan()
    count_P1 = valid_PG.sum(-1, keepdim=True).to(reward_PG.dtype)
    # Measured from the group's least reward, equal rewards leave no rounding: their advantage is exactly 0, where a
    # division by a standard deviation would otherwise blow it up.
    least_P1 = reward_PG.masked_fill(~valid_PG, float("inf")).amin(-1, keepdim=True)
    above_PG = (reward_PG - least_P1).masked_fill(~valid_PG, 0.0)
    excess_PG = count_P1 * above_PG - above_PG.sum(-1, keepdim=True)
    return excess_PG.masked_fill(~valid_PG, 0.0), count_P1


def _check(reward_PG: Tensor, *, least: int) -> None:
    """Refuse what is not [P, G] with G of `least` or more, and infinite rewards."""
    if reward_PG.ndim != 2:
        raise SettingError("reward_PG.shape", tuple(reward_PG.shape), "give [P, G]: one row for each prompt")
    if reward_PG.shape[1] < least:
        raise SettingError("group size", reward_PG.shape[1], "a baseline needs 2 or more samples of each prompt")
    if (reward_PG.abs() > 1e30).any():  # beyond, their differences are no numbers
        raise SettingError("reward_PG", reward_PG.abs().max().item(), "clip rewards; a failed grader's reward is NaN")


ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": raw,
    "mean_baseline": mean_baseline,
    "leave_one_out": leave_one_out,
    "group_normalised": group_normalised,
    "batch_normalised": batch_normalised,
}
UNSCALED = ("raw", "mean_baseline", "leave_one_out")
"""Those that are rewards less a baseline."""


def check_advantage(name: str, prompts: int, group_size: int) -> None:
    """Refuse an unknown name, and a batch too small for it.

    Raises: SettingError.
    """
    function = ADVANTAGES[check_name("advantage", name, ADVANTAGES)]
    try:
        function(torch.zeros(prompts, group_size, device="cpu"))
    except SettingError as error:
        raise SettingError("group_size", group_size, f"{name} needs 2 samples of a prompt or more") from error
