"""From rewards to returns and advantages.

The mask `valid_PG` next to the rewards is False for each sample whose reward failed: its advantage is 0, and the
baseline of its group is computed without it. The value of a failed reward is ignored.

To add an advantage: write one function (reward_PG, valid_PG) -> advantage_PG here and name it in `ADVANTAGES` at the
bottom.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._registry import check_name


def discounted_returns(reward_BT: Tensor, gamma: float, mask_BT: Tensor) -> Tensor:
    """G_n = sum_{m >= n} gamma^(m-n) r_m, where n and m count a row's actions.

    Steps outside the mask are not actions: their values are ignored and they do not discount, so tokens that a
    multi-turn environment inserts leave the returns as they are. The return *after* the action, sum_{m > n}, is G - r.

    Args:
        reward_BT: [B, T], the reward of each action.
        gamma: The discount per action, in [0, 1].
        mask_BT: [B, T], bool; True at actions.

    Returns:
        [B, T], in the dtype of the rewards (float32 or better); 0 outside the mask.

    Raises:
        SettingError: gamma outside [0, 1], the shapes differ, or the mask is not bool.

    Source: Sutton and Barto 2018, Eq. 3.8; the log2(T) steps are Hillis and Steele's scan (1986).

    Examples:
        >>> discounted_returns(torch.tensor([[1.0, 9.0, 4.0]]), 0.5, torch.tensor([[True, False, True]])).tolist()
        [[3.0, 0.0, 4.0]]
    """
    if not 0.0 <= gamma <= 1.0:
        raise SettingError("gamma", gamma, "give a number in [0, 1]")
    if reward_BT.ndim != 2 or reward_BT.shape != mask_BT.shape:
        raise SettingError("mask_BT.shape", tuple(mask_BT.shape), f"give [B, T] as reward_BT, {tuple(reward_BT.shape)}")
    if mask_BT.dtype != torch.bool:
        raise SettingError("mask_BT.dtype", mask_BT.dtype, "give a bool mask")
    # G_t = r_t + d_t G_{t+1}, with r = 0 and d = 1 outside the mask; each step doubles the span that both cover.
    dtype = torch.promote_types(reward_BT.dtype, torch.float32)
    return_BT = reward_BT.to(dtype).masked_fill(~mask_BT, 0.0)
    if gamma == 0.0:  # 0 * inf is NaN, and a horizon of 0 must not see the future
        return return_BT
    discount_BT = torch.ones_like(return_BT).masked_fill(mask_BT, gamma)
    span = 1
    while span < reward_BT.shape[1]:
        later_BT = discount_BT[:, :-span] * return_BT[:, span:]
        return_BT = torch.cat([return_BT[:, :-span] + later_BT, return_BT[:, -span:]], dim=1)
        product_BT = discount_BT[:, :-span] * discount_BT[:, span:]
        discount_BT = torch.cat([product_BT, discount_BT[:, -span:]], dim=1)
        span *= 2
    return return_BT.masked_fill(~mask_BT, 0.0)


def gae(reward_BT: Tensor, value_BT: Tensor, lam: float, mask_BT: Tensor) -> Tensor:
    """A_n = sum_{m >= n} lambda^(m-n) (r_m + V_{m+1} - V_m), the generalised advantage estimate at gamma 1.

    n and m count a row's actions; after the last one the value is 0. At lambda 1 it is the return less V_n.

    Args:
        reward_BT: [B, T], the reward of each action.
        value_BT: [B, T], the value of the state before each action; a constant.
        lam: Lambda, in [0, 1].
        mask_BT: [B, T], bool; True at actions. A row's actions must be adjacent.

    Returns:
        [B, T]; 0 outside the mask. The target of the value function is A + V.

    Raises:
        SettingError: as for `discounted_returns`, or actions with a gap between them.

    Source: Schulman et al. 2016, arXiv 1506.02438, Eq. 16.

    Examples:
        >>> mask = torch.tensor([[True, True, False]])
        >>> gae(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.25, 9.0]]), 0.5, mask).tolist()
        [[0.125, 0.75, 0.0]]
    """
    if (mask_BT[:, 1:] & ~mask_BT[:, :-1]).sum(1).add(mask_BT[:, 0]).gt(1).any():
        raise SettingError("mask_BT", "gap", "give rows whose actions are adjacent")
    value_BT = value_BT.detach().masked_fill(~mask_BT, 0.0)
    next_value_BT = torch.cat([value_BT[:, 1:], value_BT.new_zeros(len(value_BT), 1)], dim=1)
    return discounted_returns(reward_BT + next_value_BT - value_BT, lam, mask_BT)


def overlong_penalty(length_B: Tensor, limit: int, buffer: int) -> Tensor:
    """The penalty added to the reward: 0 up to `limit - buffer` tokens, then falling linearly to -1 at `limit`.

    Args:
        length_B: [B], the number of tokens of each completion.
        limit: The length limit in tokens.
        buffer: The number of tokens over which the penalty grows, in [1, limit].

    Returns:
        [B], float64, in [-1, 0].

    Raises:
        SettingError: buffer out of range.

    Source: Yu et al. 2025, arXiv 2503.14476, Eq. 13 (DAPO); no completion is longer than the limit here.

    Examples:
        >>> overlong_penalty(torch.tensor([4, 8, 9, 10]), limit=10, buffer=4).tolist()
        [0.0, -0.5, -0.75, -1.0]
    """
    if not 1 <= buffer <= limit:
        raise SettingError("overlong_buffer", buffer, f"give 1 to {limit}, the length limit")
    return (limit - buffer - length_B.double()).clamp(max=0.0) / buffer


def leave_one_out(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = r_i - mean of the others = G/(G-1) (r_i - mean): the baseline is independent of y_i, hence unbiased.

    Args:
        reward_PG: [P, G], finite where valid; any value elsewhere.
        valid_PG: [P, G], bool; False where the reward failed.

    Returns:
        [P, G], in the dtype of the rewards (float32 or better), each group summing to 0; 0 where invalid and for a
        group with fewer than two valid rewards, and exactly 0 where all valid rewards of a group are equal.

    Raises:
        SettingError: G below 2, not [P, G], a mask of another shape or dtype, or a valid reward that is not finite.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; Ahmadian et al. 2024,
    arXiv 2402.14740 (RLOO).

    Examples:
        >>> reward = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> leave_one_out(reward, torch.tensor([[True, True, True], [True, True, False]])).tolist()
        [[1.0, -0.5, -0.5], [1.0, -1.0, 0.0]]
    """
    deviation_PG, count_P1 = _deviation_times_count(reward_PG, valid_PG)
    return deviation_PG / (count_P1 - 1.0).clamp(min=1.0)


def mean_baseline(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = r_i - mean of the group, y_i included: (G-1)/G times `leave_one_out`.

    Arguments, result and errors as for `leave_one_out`. Source: Liu et al. 2025, arXiv 2503.20783 (Dr. GRPO).

    Examples:
        >>> mean_baseline(torch.tensor([[3.0, 0.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)).tolist()
        [[2.0, -1.0, -1.0]]
    """
    deviation_PG, count_P1 = _deviation_times_count(reward_PG, valid_PG)
    return deviation_PG / count_P1.clamp(min=1.0)


def raw(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = r_i, without a baseline: the policy gradient with the most variance. G may be 1.

    Arguments, result and errors as for `leave_one_out`.

    Examples:
        >>> raw(torch.tensor([[3.0], [1.0]]), torch.tensor([[True], [False]])).tolist()
        [[3.0], [0.0]]
    """
    return _checked_rewards(reward_PG, valid_PG, min_group=1)


def group_normalised(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean) / (std + 1e-4), over the group, with the n-1 of the sample standard deviation.

    Every prompt then moves the policy equally, however small its differences: biased towards very easy and very hard
    prompts. Differences well below 1e-4 count as none; those of a learned reward's last digits may be larger, and are
    amplified.

    Arguments, result and errors as for `leave_one_out`. Source: Shao et al. 2024, arXiv 2402.03300 (GRPO).

    Examples:
        >>> reward = torch.tensor([[2.0, 0.0, 1.0], [0.1, 0.1, 0.1]])
        >>> group_normalised(reward, torch.ones(2, 3, dtype=torch.bool)).round(decimals=3).tolist()
        [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    deviation_PG = mean_baseline(reward_PG, valid_PG)
    count_P1 = valid_PG.sum(-1, keepdim=True)
    std_P1 = (deviation_PG.square().sum(-1, keepdim=True) / (count_P1 - 1).clamp(min=1)).sqrt()
    return deviation_PG / (std_P1 + 1e-4)


def batch_normalised(reward_PG: Tensor, valid_PG: Tensor) -> Tensor:
    """A = (r - mean) / (std + 1e-4), as `group_normalised` but over the whole batch. G may be 1.

    Arguments, result and errors as for `leave_one_out`. Source: Hu et al. 2025, arXiv 2501.03262 (REINFORCE++).

    Examples:
        >>> batch_normalised(torch.tensor([[2.0], [0.0], [1.0]]), torch.ones(3, 1).bool()).round(decimals=3).tolist()
        [[1.0], [-1.0], [0.0]]
    """
    reward_PG = _checked_rewards(reward_PG, valid_PG, min_group=1)
    return group_normalised(reward_PG.reshape(1, -1), valid_PG.reshape(1, -1)).reshape(reward_PG.shape)


def _deviation_times_count(reward_PG: Tensor, valid_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Return n (r - mean) [P, G] and n [P, 1], the number of valid rewards in the group; 0 where invalid."""
    reward_PG = _checked_rewards(reward_PG, valid_PG, min_group=2)
    count_P1 = valid_PG.sum(-1, keepdim=True).to(reward_PG.dtype)
    # Measured from the group's least reward, equal rewards leave no rounding error: their advantage is exactly 0,
    # where dividing by a standard deviation would otherwise amplify it.
    least_P1 = reward_PG.masked_fill(~valid_PG, float("inf")).amin(-1, keepdim=True)
    above_least_PG = (reward_PG - least_P1).masked_fill(~valid_PG, 0.0)
    deviation_PG = count_P1 * above_least_PG - above_least_PG.sum(-1, keepdim=True)
    return deviation_PG.masked_fill(~valid_PG, 0.0), count_P1


def _checked_rewards(reward_PG: Tensor, valid_PG: Tensor, *, min_group: int) -> Tensor:
    """Return the rewards in float32 or better, 0 where invalid.

    Raises:
        SettingError: not [P, G], G below `min_group`, another mask, or a valid reward that is not finite.
    """
    if reward_PG.ndim != 2:
        raise SettingError("reward_PG.shape", tuple(reward_PG.shape), "give [P, G]: one row for each prompt")
    if reward_PG.shape[1] < min_group:
        raise SettingError("group size", reward_PG.shape[1], "a baseline needs 2 or more samples of each prompt")
    if valid_PG.shape != reward_PG.shape:
        raise SettingError("valid_PG.shape", tuple(valid_PG.shape), f"give reward_PG's, {tuple(reward_PG.shape)}")
    if valid_PG.dtype != torch.bool:
        raise SettingError("valid_PG.dtype", valid_PG.dtype, "give a bool mask")
    reward_PG = reward_PG.to(torch.promote_types(reward_PG.dtype, torch.float32)).masked_fill(~valid_PG, 0.0)
    if not (reward_PG.abs() <= 1e30).all():  # false for NaN too; differences of infinities are NaN
        largest = reward_PG.abs().max().item()
        raise SettingError("reward_PG", largest, "clip rewards; where the grader failed, let valid_PG be False")
    return reward_PG


Advantage = Callable[[Tensor, Tensor], Tensor]
"""(reward [P, G], valid [P, G], bool) -> advantage [P, G], 0 where invalid."""
ADVANTAGES: dict[str, Advantage] = {
    "raw": raw,
    "mean_baseline": mean_baseline,
    "leave_one_out": leave_one_out,
    "group_normalised": group_normalised,
    "batch_normalised": batch_normalised,
}
UNSCALED = ("raw", "mean_baseline", "leave_one_out")
"""The advantages that are a reward minus a baseline, in the reward's unit."""


def check_advantage(name: str, prompts: int, group_size: int) -> None:
    """Refuse an unknown name, a batch that is too small for the advantage, and one that gives another shape.

    Raises:
        SettingError: the name, or the size of the groups.
    """
    function = ADVANTAGES[check_name("advantage", name, ADVANTAGES)]
    try:
        reward_PG = torch.zeros(prompts, group_size, device="cpu")
        found: Any = function(reward_PG, torch.ones_like(reward_PG, dtype=torch.bool))
    except SettingError as error:
        raise SettingError("group_size", group_size, f"{name} needs 2 samples of a prompt or more") from error
    if not isinstance(found, Tensor) or found.shape != reward_PG.shape:
        remedy = f"it gave {list(found.shape) if isinstance(found, Tensor) else type(found).__name__}; return [P, G]"
        raise SettingError("advantage", name, remedy)
