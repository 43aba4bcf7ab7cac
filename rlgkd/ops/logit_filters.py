"""Sampling from the likelier tokens alone: top-k, top-p and min-p, as functions of tempered logits.

Each takes [..., V] and returns them with -inf where a token is left out, so that its probability is 0 and the others
share what it had. They change the support: a policy that samples so and is scored without is not one policy. So they
are for evaluation, and no agent takes them. Left out: filters that look at what is written (repetition penalties).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlgkd.errors import SettingError


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and those that are as likely as the k-th; k of V or more keeps all.

    Raises:
        SettingError: k below 1, or no whole number.

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation" (arXiv 1805.04833), 4.

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 1.0, 0.0]), 2).tolist()
        [1.0, 3.0, 1.0, -inf]
    """
    if k < 1 or k != int(k):
        raise SettingError("top_k", k, "give a whole number of tokens, 1 or more")
    least = logits.topk(min(int(k), logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches p, and so at least one; p of 1 keeps all.

    A token stays where the mass of those before it, in the order of probability, is below p. Of equally likely ones the
    smaller ids come first.

    Raises:
        SettingError: p outside (0, 1].

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), 3.1.

    Example:
        >>> top_p(torch.tensor([0.125, 0.5, 0.25, 0.125]).log(), 0.75).exp().tolist()
        [0.0, 0.5, 0.25, 0.0]
    """
    if not 0 < p <= 1:
        raise SettingError("top_p", p, "give a share of the mass in (0, 1]")
    if p == 1:
        return logits  # not by the sum, whose rounding could reach 1 before the last token
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    sorted_V, ids_V = logits.sort(dim=-1, descending=True, stable=True)
    probability_V = sorted_V.to(wide).softmax(-1)
    out_V = probability_V.cumsum(-1) - probability_V >= p
    return logits.masked_fill(torch.zeros_like(out_V).scatter(-1, ids_V, out_V), float("-inf"))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose probability is at least p times that of the likeliest, which stays; p of 0 keeps all.

    Raises:
        SettingError: p outside [0, 1].

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling" (arXiv 2407.01082), 3.

    Example:
        >>> min_p(torch.tensor([0.125, 0.5, 0.25, 0.125]).log(), 0.5).exp().tolist()
        [0.0, 0.5, 0.25, 0.0]
    """
    if not 0 <= p <= 1:
        raise SettingError("min_p", p, "give a share of the likeliest token's probability in [0, 1]")
    relative_V = (logits - logits.amax(-1, keepdim=True)).exp()
    return logits.masked_fill(relative_V < p, float("-inf"))


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Those that are set, one behind the other; None leaves one out.

    Each sees what the one before has kept as a distribution of its own, in the order of transformers.

    Raises: SettingError for a value outside its range.
    """

    top_k: int | None = None
    """Of `top_k`: tokens."""
    top_p: float | None = None
    """Of `top_p`: mass."""
    min_p: float | None = None
    """Of `min_p`: share of the likeliest token's probability."""

    def __post_init__(self) -> None:
        """Check the values now, not at the first token."""
        self(torch.zeros(1, device="cpu"))

    def __call__(self, logits: Tensor) -> Tensor:
        """[..., V] -> [..., V], -inf where a token is left out."""
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits

    def __bool__(self) -> bool:
        """Whether any is set."""
        return any(value is not None for value in (self.top_k, self.top_p, self.min_p))
