"""Logit filters for sampling: top-k, top-p and min-p, applied after the temperature.

Each maps logits [..., V] to the same with -inf at the tokens it removes, whose probability the others then share. The
filters change the support: sampling with one and scoring without it would mix two policies. They are therefore for
evaluation, and no agent takes them. Not here: filters that depend on the tokens so far (repetition penalties).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlgkd.devices import widest_float
from rlgkd.errors import SettingError


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens and any that tie with the k-th; k of V or more keeps all.

    Raises:
        SettingError: k below 1, or not a whole number.

    Source: Fan et al. 2018, "Hierarchical Neural Story Generation" (arXiv 1805.04833), 4.

    Examples:
        >>> top_k(torch.tensor([1.0, 3.0, 1.0, 0.0]), 2).tolist()
        [1.0, 3.0, 1.0, -inf]
    """
    if k < 1 or k != int(k):
        raise SettingError("top_k", k, "give a whole number of tokens, 1 or more")
    least = logits.topk(min(int(k), logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches p, at least one token; p of 1 keeps all.

    A token is kept if the mass of the tokens before it, in order of probability, is below p. Equally likely tokens are
    ordered by their ids.

    Raises:
        SettingError: p outside (0, 1].

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751), 3.1.

    Examples:
        >>> top_p(torch.tensor([0.125, 0.5, 0.25, 0.125]).log(), 0.75).exp().tolist()
        [0.0, 0.5, 0.25, 0.0]
    """
    if not 0 < p <= 1:
        raise SettingError("top_p", p, "give a share of the mass in (0, 1]")
    if p == 1:
        return logits  # a rounded cumulative sum could reach 1 before the last token
    sorted_V, ids_V = logits.sort(dim=-1, descending=True, stable=True)
    probability_V = sorted_V.to(widest_float(logits.device)).softmax(-1)
    removed_V = probability_V.cumsum(-1) - probability_V >= p
    return logits.masked_fill(torch.zeros_like(removed_V).scatter(-1, ids_V, removed_V), float("-inf"))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose probability is at least p times that of the likeliest; p of 0 keeps all.

    Raises:
        SettingError: p outside [0, 1].

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling" (arXiv 2407.01082), 3.

    Examples:
        >>> min_p(torch.tensor([0.125, 0.5, 0.25, 0.125]).log(), 0.5).exp().tolist()
        [0.0, 0.5, 0.25, 0.0]
    """
    if not 0 <= p <= 1:
        raise SettingError("min_p", p, "give a share of the likeliest token's probability in [0, 1]")
    relative_V = (logits - logits.amax(-1, keepdim=True)).exp()
    return logits.masked_fill(relative_V < p, float("-inf"))


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The filters that are set, applied one after another, each to the renormalised result of the previous one.

    The order is that of transformers. None leaves a filter out.

    Raises: SettingError for a value outside its range.
    """

    top_k: int | None = None
    """How many tokens `top_k` keeps, 1 or more."""
    top_p: float | None = None
    """The mass that `top_p` keeps, in (0, 1]."""
    min_p: float | None = None
    """The smallest share of the likeliest token's probability that `min_p` keeps, in [0, 1]."""

    def __post_init__(self) -> None:
        """Check the values when they are given, not at the first token."""
        self(torch.zeros(1, device="cpu"))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the logits [..., V] with -inf at removed tokens."""
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits

    def __bool__(self) -> bool:
        """Whether any filter is set."""
        return any(value is not None for value in (self.top_k, self.top_p, self.min_p))
