"""Gates that ask what a text has earned: whether the reward agrees with the teacher, and which of the two then teaches.

z is +1 for a text whose reward is at least `verified_from`, -1 for another one, and 0 where the reward failed; such a
text has no verdict, and the gates by z leave its divergence as it is. d_n = log p_T(y_n) - log p_S(y_n), in nats. The
conventions of all gates, and the table of what they may ask for, are in gate.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlgkd.ops._gate import Weights, check_range, weighs

SMALLEST_MEDIAN = 1e-8
"""Nats, below which R2-OPD's scale does not fall."""


@weighs("policy", "divergence")
def tgopd(teacher_reward_B1: Tensor, *, trusted_from: float = 0.6) -> Weights:
    """The divergence alone for a prompt that the teacher answers well by itself, and the policy term alone for others.

    Each token has one of the two terms; the mean weights are the shares of the tokens that have them.

    Args:
        teacher_reward_B1: [B, 1], the mean reward of the teacher's answers (`teacher_probes`); NaN is not trusted.
        trusted_from: The mean reward from which the teacher is trusted with a prompt, in (-inf, inf).

    Source: arXiv 2609.02998 (TGOPD), as a summary gives the rule: three answers, of which two must be right.

    Examples:
        >>> tgopd(torch.tensor([[2 / 3], [1 / 3]]))[1].tolist()
        [[1.0], [0.0]]
    """
    check_range("trusted_from", trusted_from, -float("inf"))
    trusted_B1 = teacher_reward_B1 >= trusted_from
    return (~trusted_B1).double(), trusted_B1.double()


@weighs("policy")
def rlsd(advantage_BL: Tensor, gap_BL: Tensor, *, reweighting: float = 0.5, reweighting_clip: float = 0.2) -> Weights:
    """Policy term times 1 - l + l clip(exp(sign(A) d), 1-e, 1+e): the reward gives the sign, the teacher the size.

    The mean weight is not kept, but stays in [1 - l e, 1 + l e]. At l = 0 all weights are 1.

    Args:
        advantage_BL: [B, L].
        gap_BL: [B, L], nats.
        reweighting: How much the teacher says of a token's share, l in [0, 1]; 0 is the policy term alone.
        reweighting_clip: How far the teacher's ratio may lie from 1, e in [0, 1].

    Source: Yang et al. 2026, arXiv 2604.03128 (RLSD), Eq. 13 to 15; there the teacher is the student that reads the
    answer too, and l falls to 0 over the first 50 steps.

    Examples:
        >>> advantage, gap = torch.tensor([[1.0, 1.0, -1.0]]), torch.tensor([[0.1, -2.0, -2.0]])
        >>> [round(weight, 4) for weight in rlsd(advantage, gap)[0][0].tolist()]
        [1.0526, 0.9, 1.1]
    """
    check_range("reweighting", reweighting, 0.0, 1.0)
    check_range("reweighting_clip", reweighting_clip, 0.0, 1.0)
    ratio_BL = (advantage_BL.sign() * gap_BL).exp().clamp(1.0 - reweighting_clip, 1.0 + reweighting_clip)
    return 1.0 - reweighting + reweighting * ratio_BL, None


@weighs("policy", "divergence")
def srpo(
    reward_B1: Tensor,
    group_B1: Tensor,
    teacher_entropy_BL: Tensor,
    mask_BL: Tensor,
    *,
    verified_from: float = 0.5,
    entropy_decay: float = 1.0,
    needs_sibling: bool = False,
) -> Weights:
    """A wrong text has the divergence alone, times exp(-b H(p_T)) over its mean in such texts; others the policy term.

    Each token has one of the two terms; the weights of the divergence have mean 1 over the tokens that have it. A text
    without a verdict has the divergence as it is.

    Args:
        reward_B1: [B, 1].
        group_B1: [B, 1], the number of the prompt.
        teacher_entropy_BL: [B, L], nats.
        mask_BL: [B, L], bool.
        verified_from: The reward from which a text counts as right, in (-inf, inf).
        entropy_decay: How fast the weight falls with the teacher's entropy, b per nat, 0 or more.
        needs_sibling: Distil a wrong text only if another sample of its prompt is right.

    Source: Li et al. 2026, arXiv 2604.02288 (SRPO); there the teacher reads a right text of the same group, and texts
    without one keep the policy term, which is `needs_sibling`.

    Examples:
        >>> reward, group = torch.tensor([[1.0], [0.0]]), torch.tensor([[0], [0]])
        >>> entropy, mask = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.ones(2, 2, dtype=torch.bool)
        >>> [[round(weight, 3) for weight in row] for row in srpo(reward, group, entropy, mask)[1].tolist()]
        [[0.0, 0.0], [1.762, 0.238]]
    """
    check_range("entropy_decay", entropy_decay, 0.0)
    outcome_B1 = outcome(reward_B1, verified_from)
    wrong_B1 = outcome_B1 < 0
    if needs_sibling:
        same_BB = group_B1 == group_B1.T
        wrong_B1 = wrong_B1 & (same_BB & (outcome_B1 > 0).T).any(1, keepdim=True)
    distilled_BL = wrong_B1 & mask_BL
    least = teacher_entropy_BL.masked_fill(~distilled_BL, float("inf")).min()  # else all of them may be 0 in float64
    sure_BL = torch.where(distilled_BL, (-entropy_decay * (teacher_entropy_BL - least)).exp(), 0.0)
    mean = sure_BL.sum() / distilled_BL.sum().clamp(min=1)
    no_verdict_B1 = (outcome_B1 == 0).double()
    return (~wrong_B1).double(), torch.where(distilled_BL, sure_BL / mean, no_verdict_B1)


@weighs("divergence")
def ra_opd(reward_B1: Tensor, gap_BL: Tensor, mask_BL: Tensor, *, verified_from: float = 0.5) -> Weights:
    """Divergence of texts with z sum_n d_n >= 0 alone: the teacher likes what is right, or dislikes what is wrong.

    The mean weight is the share of tokens that is kept; no weight is above 1.

    Args:
        reward_B1: [B, 1].
        gap_BL: [B, L], nats.
        mask_BL: [B, L], bool.
        verified_from: The reward from which a text counts as right, in (-inf, inf).

    Source: Gan et al. 2026, arXiv 2608.27960 (RA-OPD), as summaries of it give the rule.

    Examples:
        >>> gap, mask = torch.tensor([[1.0, -0.5], [1.0, -0.5]]), torch.ones(2, 2, dtype=torch.bool)
        >>> ra_opd(torch.tensor([[1.0], [0.0]]), gap, mask)[1].tolist()
        [[1.0], [0.0]]
    """
    total_B1 = (gap_BL * mask_BL).sum(1, keepdim=True)
    return None, (outcome(reward_B1, verified_from) * total_B1 >= 0).double()


@weighs("divergence")
def rg_opd(
    reward_B1: Tensor, gap_BL: Tensor, mask_BL: Tensor, *, verified_from: float = 0.5, margin: float = 0.0
) -> Weights:
    """Divergence of right texts with sum_n d_n > margin and of wrong ones with sum_n d_n < -margin alone.

    The mean weight is the share of tokens that is kept; no weight is above 1.

    Args:
        reward_B1: [B, 1].
        gap_BL: [B, L], nats.
        mask_BL: [B, L], bool.
        verified_from: The reward from which a text counts as right, in (-inf, inf).
        margin: By how much the teacher must like or dislike a whole text, in nats, 0 or more.

    Source: Akhondzadeh et al. 2026, arXiv 2607.04037 (RG-OPD), Eq. 2, as notes on it give it.

    Examples:
        >>> gap, mask = torch.tensor([[1.0, -0.5], [1.0, -0.5]]), torch.ones(2, 2, dtype=torch.bool)
        >>> rg_opd(torch.tensor([[1.0], [0.0]]), gap, mask)[1].tolist()
        [[1.0], [0.0]]
    """
    check_range("margin", margin, 0.0)
    total_B1 = (gap_BL * mask_BL).sum(1, keepdim=True)
    outcome_B1 = outcome(reward_B1, verified_from)
    return None, ((outcome_B1 * total_B1 > margin) | (outcome_B1 == 0)).double()


@weighs("divergence")
def sg_opd(
    reward_B1: Tensor,
    gap_BL: Tensor,
    *,
    verified_from: float = 0.5,
    agree_weight: float = 1.8,
    disagree_weight: float = 1.0,
) -> Weights:
    """Divergence times one weight at tokens with z d_n > 0 and another one elsewhere.

    The mean weight lies between the two. With 1 and 1 all weights are 1; with 1 and 0 tokens at which teacher and
    reward disagree are left out, as in OPDVR (arXiv 2608.24696).

    Args:
        reward_B1: [B, 1].
        gap_BL: [B, L], nats.
        verified_from: The reward from which a text counts as right, in (-inf, inf).
        agree_weight: The weight where the teacher likes a right text's token or dislikes a wrong text's, 0 or more.
        disagree_weight: The weight elsewhere, 0 or more.

    Source: Xu et al. 2026, arXiv 2606.09304 (SG-OPD), whose phases of verified texts of the teacher are the recipe
    sg-opd; the weights are those that a later paper reports for it.

    Examples:
        >>> sg_opd(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, -1.0], [1.0, -1.0]]))[1].tolist()
        [[1.8, 1.0], [1.0, 1.8]]
    """
    check_range("agree_weight", agree_weight, 0.0)
    check_range("disagree_weight", disagree_weight, 0.0)
    outcome_B1 = outcome(reward_B1, verified_from)
    agree, disagree = (torch.tensor(weight, dtype=torch.float64) for weight in (agree_weight, disagree_weight))
    weight_BL = torch.where(outcome_B1 * gap_BL > 0, agree, disagree)
    return None, torch.where(outcome_B1 == 0, 1.0, weight_BL)


@weighs("divergence", mean="each text, weighed by |d|")
def r2_opd(
    reward_B1: Tensor, gap_BL: Tensor, mask_BL: Tensor, *, verified_from: float = 0.5, alignment: float = 0.001
) -> Weights:
    """Divergence times sigmoid(b z d_n / median |d|), scaled so that each text keeps its sum of |d_n|.

    At b = 0 all weights are 1.

    Args:
        reward_B1: [B, 1].
        gap_BL: [B, L], nats.
        mask_BL: [B, L], bool.
        verified_from: The reward from which a text counts as right, in (-inf, inf).
        alignment: How strongly agreement with the reward counts, b in units of the text's median gap, 0 or more.

    Source: Xu et al. 2026, arXiv 2609.35517 (R2-OPD), Eq. 13 to 16, as a summary of it gives them.

    Examples:
        >>> gap, mask = torch.tensor([[1.0, -1.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
        >>> weight = r2_opd(torch.tensor([[1.0]]), gap, mask, alignment=2.0)[1]
        >>> [round(number, 3) for number in weight[0].tolist()], round((weight * gap.abs()).sum().item(), 5)
        ([1.189, 0.161, 1.325], 4.0)
    """
    check_range("alignment", alignment, 0.0)
    size_BL = gap_BL.abs() * mask_BL
    median_B1 = gap_BL.abs().masked_fill(~mask_BL, float("nan")).nanmedian(dim=1, keepdim=True).values
    signed_BL = outcome(reward_B1, verified_from) * gap_BL / median_B1.clamp(min=SMALLEST_MEDIAN)
    gate_BL = (alignment * signed_BL).sigmoid()
    gated_B1 = (gate_BL * size_BL).sum(1, keepdim=True)
    scale_B1 = torch.where(gated_B1 > 0, size_BL.sum(1, keepdim=True) / gated_B1, 2.0)
    return None, scale_B1 * gate_BL


@weighs("policy", "divergence")
def aopd(advantage_BL: Tensor) -> Weights:
    """Policy term where the advantage is above 0, divergence elsewhere: reinforce what worked, else imitate.

    Each token has one of the two terms.

    Args:
        advantage_BL: [B, L].

    Source: the rule of Jia et al. 2026, arXiv 2605.06387 (AOPD), with the reward's advantage in the place of d_n, which
    is the paper's own; theirs is the estimator `asymmetric`.

    Examples:
        >>> [weight.tolist() for weight in aopd(torch.tensor([[0.5, 0.0, -1.0]]))]
        [[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]]]
    """
    worked_BL = advantage_BL > 0
    return worked_BL.double(), (~worked_BL).double()


def outcome(reward_B1: Tensor, verified_from: float) -> Tensor:
    """The verdicts z of texts, [B, 1]: +1 right, -1 wrong, 0 unknown."""
    check_range("verified_from", verified_from, -float("inf"))
    sign_B1 = torch.where(reward_B1 >= verified_from, 1.0, -1.0).double()
    return sign_B1.masked_fill(reward_B1.isnan(), 0.0)
