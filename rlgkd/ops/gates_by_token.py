"""Gates that ask where in a text a token stands and how sure student and teacher are of it, not what the text earned.

d_n = log p_T(y_n) - log p_S(y_n), in nats. The conventions of all gates, and the table of what they may ask for, are in
gate.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlgkd.errors import SettingError
from rlgkd.ops._gate import Weights, check_range, weighs


@weighs(mean="each action")
def none() -> Weights:
    """1 and 1: Eq. 5 as it is.

    Examples:
        >>> none()
        (None, None)
    """
    return None, None


@weighs("divergence")
def sdar(gap_BL: Tensor, *, sharpness: float = 5.0) -> Weights:
    """Divergence times sigmoid(b d_n): strong where the teacher likes the token more than the student, else weak.

    The mean weight lies in (0, 1); at b = 0 all weights are 1/2.

    Args:
        gap_BL: [B, L], nats.
        sharpness: How sharply the weight rises with the gap, b per nat, 0 or more.

    Source: the gate of Lu et al. 2026, arXiv 2605.15155 (SDAR). The paper's term is the gate times d_n, differentiated
    through log p_S(y_n) alone: that is the estimator `sampled` with `gap: sigmoid` and without this gate.

    Examples:
        >>> [round(weight, 4) for weight in sdar(torch.tensor([[0.2, 0.0, -0.2]]))[1][0].tolist()]
        [0.7311, 0.5, 0.2689]
    """
    check_range("sharpness", sharpness, 0.0)
    return None, (sharpness * gap_BL).sigmoid()


@weighs("divergence")
def iw_opd(gap_BL: Tensor, mask_BL: Tensor, *, prefix_gain: float = 0.5) -> Weights:
    """Divergence times 1 + g (1 - F_n), F_n the share of a text's |d| before n: most where the teacher would be too.

    The mean weight lies in [1, 1 + g]. At g = 0 all weights are 1.

    Args:
        gap_BL: [B, L], nats.
        mask_BL: [B, L], bool.
        prefix_gain: The gain g of a text's first token, 0 or more.

    Source: Xie et al. 2026, arXiv 2606.22600 (IW-OPD), as its public code has it.

    Examples:
        >>> iw_opd(torch.tensor([[-1.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))[1].tolist()
        [[1.5, 1.375, 1.125]]
    """
    check_range("prefix_gain", prefix_gain, 0.0)
    size_BL = gap_BL.abs() * mask_BL
    before_BL = size_BL.cumsum(1) - size_BL
    total_B1 = size_BL.sum(1, keepdim=True)
    share_BL = torch.where(total_B1 > 0, before_BL / total_B1, 0.0)
    return None, 1.0 + prefix_gain * (1.0 - share_BL)


@weighs("divergence", mean="the batch")
def tip(entropy_BL: Tensor, divergence_BL: Tensor, mask_BL: Tensor, *, kept_tokens: float = 0.5) -> Weights:
    """Divergence at the tokens with the greatest h + D - h D alone, h the student's entropy, both scaled to [0, 1].

    Tokens at which the student is unsure, or sure and wrong. What is kept is weighed up, so that the mean over the
    batch's tokens is 1. At 1 all weights are 1.

    Args:
        entropy_BL: [B, L], of the student, nats.
        divergence_BL: [B, L], nats.
        mask_BL: [B, L], bool.
        kept_tokens: The share of the batch's tokens that is kept, in (0, 1].

    Source: Xu et al. 2026, arXiv 2604.14084 (TIP), with reverse KL; least and greatest value of the batch scale both.

    Examples:
        >>> entropy, divergence = torch.tensor([[2.0, 0.0, 0.1, 0.0]]), torch.tensor([[0.0, 3.0, 0.1, 0.0]])
        >>> tip(entropy, divergence, torch.ones(1, 4, dtype=torch.bool))[1].tolist()
        [[2.0, 2.0, 0.0, 0.0]]
    """
    _check_share("kept_tokens", kept_tokens)
    unsure_N, apart_N = _scaled(entropy_BL[mask_BL]), _scaled(divergence_BL[mask_BL])
    score_N = unsure_N + apart_N - unsure_N * apart_N
    kept_BL = _greatest(score_N, mask_BL, kept_tokens)
    return None, kept_BL * (len(score_N) / kept_BL.sum().clamp(min=1))


@weighs("divergence")
def prefix(mask_BL: Tensor, *, kept_prefix: float = 0.3) -> Weights:
    """Divergence at the first tokens of each text alone.

    The mean weight is the share that is kept. At 1 all weights are 1.

    Args:
        mask_BL: [B, L], bool.
        kept_prefix: The share of a text's tokens that is kept, rounded up to whole tokens, in (0, 1].

    Source: Zhang et al. 2026, arXiv 2602.15260 (prefixes, where sampling ends there too, which is what saves time); the
    share of 0.3 is that of Xie et al. 2026, arXiv 2606.22600.

    Examples:
        >>> prefix(torch.ones(1, 4, dtype=torch.bool))[1].tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """
    _check_share("kept_prefix", kept_prefix)
    number_BL = mask_BL.cumsum(1)
    kept_B1 = (kept_prefix * mask_BL.sum(1, keepdim=True).double() - 1e-9).ceil()  # 0.3 of 10 tokens are 3
    return None, (number_BL <= kept_B1).double()


@weighs("divergence")
def improbable(
    logp_BL: Tensor, entropy_BL: Tensor, mask_BL: Tensor, *, kept_improbable: float = 0.2, by_entropy: bool = False
) -> Weights:
    """Divergence at the tokens that were least probable for the student alone.

    With the estimator `fixed_negative` the control without a teacher: one negative advantage on improbable tokens. The
    mean weight is the share that is kept, or less with `by_entropy`. At 1 without it all weights are 1.

    Args:
        logp_BL: [B, L], of the student, nats.
        entropy_BL: [B, L], of the student, nats.
        mask_BL: [B, L], bool.
        kept_improbable: The share of the batch's tokens that is kept, in (0, 1].
        by_entropy: Weigh them by 1/2 (1 + h), h the student's entropy between the batch's least 0 and greatest 1.

    Source: Ding and Zhang 2026, arXiv 2608.31046: its fixed negative advantage, and OPSA with `by_entropy`.

    Examples:
        >>> logp, mask = torch.tensor([[-0.1, -3.0, -0.2, -0.1, -0.3]]), torch.ones(1, 5, dtype=torch.bool)
        >>> improbable(logp, torch.zeros(1, 5), mask)[1].tolist()
        [[0.0, 1.0, 0.0, 0.0, 0.0]]
    """
    _check_share("kept_improbable", kept_improbable)
    kept_BL = _greatest(-logp_BL[mask_BL], mask_BL, kept_improbable)
    if by_entropy:
        half_BL = torch.zeros_like(kept_BL)
        half_BL[mask_BL] = 0.5 * (1.0 + _scaled(entropy_BL[mask_BL]).double())
        kept_BL = kept_BL * half_BL
    return None, kept_BL


def _check_share(field: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise SettingError(field, value, "give a number in (0, 1]")


def _scaled(values_N: Tensor) -> Tensor:
    """Values between the least, 0, and the greatest, 1; all 0 where they are equal."""
    if not len(values_N):
        return values_N
    low, high = values_N.min(), values_N.max()
    return torch.where(high > low, (values_N - low) / (high - low), 0.0)


def _greatest(score_N: Tensor, mask_BL: Tensor, share: float) -> Tensor:
    """[B, L]: 1 at the share of the mask's places with the greatest scores, the first ones of equals; else 0."""
    count = math.ceil(share * len(score_N) - 1e-9)  # 0.3 of 10 tokens are 3
    kept_N = torch.zeros(len(score_N), dtype=torch.float64)
    kept_N[score_N.argsort(descending=True, stable=True)[:count]] = 1.0
    return torch.zeros(mask_BL.shape, dtype=torch.float64).masked_scatter(mask_BL, kept_N)
