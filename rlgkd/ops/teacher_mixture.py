"""Several teachers as one distribution, over the whole vocabulary: a weighted product or a weighted sum of theirs.

Log-probabilities and logits are in nats, [..., V]; a weight belongs to one teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

Mix = Literal["product", "sum"]
LOWEST: Final = -1e4
"""Nats below which no teacher's log-probability counts in a product, where a weight may be negative."""


def mixed(logits: Sequence[Tensor], weights: Sequence[float], mix: Mix) -> Tensor:
    """Return the mixture's log-probabilities [..., V] from each teacher's logits [..., V].

    The product is prod_k p_k^w_k, normalised: weights need not sum to 1, and may be negative. With the weights l and
    1 - l it is p_T^l p_R^(1-l), what G-OPD extrapolates to (arXiv 2602.12125). The sum is sum_k w_k p_k; its weights
    are above 0 and count by their shares.

    Examples:
        >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
        >>> [[round(x, 3) for x in mixed([p, q], [0.5, 0.5], mix).exp().tolist()] for mix in ("product", "sum")]
        [[0.75, 0.25], [0.7, 0.3]]
    """
    logp = [one.log_softmax(-1) for one in logits]
    if mix == "sum":
        total = sum(weights)
        shares = [one + math.log(weight / total) for one, weight in zip(logp, weights, strict=True)]
        return torch.stack(shares).logsumexp(0)
    summed = torch.zeros_like(logp[0])
    for one, weight in zip(logp, weights, strict=True):
        summed = summed + weight * one.clamp(min=LOWEST)
    return summed.log_softmax(-1)
