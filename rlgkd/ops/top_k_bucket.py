"""Distributions over the teacher's k most probable tokens and one bucket for all others.

For a teacher of which only the top k is known (an API, a cache on disk), or to match the teacher's head alone. Any
divergence of rlgkd.ops.divergence applies to the results, and by the data-processing inequality no f-divergence exceeds
its value over the whole vocabulary. The bucket is not optional: without it, the reverse KL over the top k alone is
minimised by moving the student's mass out of the top k, and the forward KL becomes negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from rlgkd.errors import SettingError


def top_k_with_bucket(teacher_logits: Tensor, student_logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return teacher and student over the teacher's top k tokens and the bucket.

    Args:
        teacher_logits: [..., V], any floating dtype; a constant.
        student_logits: [..., V], same shape, with its gradient.
        k: 1 or more; V or more returns both unchanged.

    Returns:
        Two tensors [..., k+1] of log-probabilities in nats; the last entry is the bucket.

    Raises:
        SettingError: k below 1.

    Examples:
        >>> teacher, student = torch.tensor([0.2, 0.7, 0.1]).log(), torch.tensor([0.3, 0.2, 0.5]).log()
        >>> teacher, student = top_k_with_bucket(teacher, student, k=1)
        >>> [[round(p, 4) for p in side.exp().tolist()] for side in (teacher, student)]
        [[0.7, 0.3], [0.2, 0.8]]
    """
    if k < 1:
        raise SettingError("k", k, "give 1 or more")
    if k >= teacher_logits.shape[-1]:
        return teacher_logits, student_logits
    ids_K = teacher_logits.detach().topk(k, dim=-1).indices
    return _with_bucket(teacher_logits.detach(), ids_K), _with_bucket(student_logits, ids_K)


def known_top_k_with_bucket(
    teacher_logp_K: Tensor, ids_K: Tensor, student_logits: Tensor, rest: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the same for a teacher of which only some tokens' log-probabilities are known.

    Args:
        teacher_logp_K: [..., K], nats, for K different tokens; their probabilities sum to at most 1. -inf fills rows
            of which fewer are known, with any id of the row.
        ids_K: [..., K], int64: the ids of these tokens.
        student_logits: [..., V], with its gradient.
        rest: [...], nats: the log-probability of all other tokens together, where it is known better than by the sum.

    Returns:
        Two tensors [..., K+1] of log-probabilities in nats; the last entry is the bucket, which is left out if K is V.

    Raises:
        SettingError: the shapes differ, or the teacher's probabilities sum to more than 1.

    Examples:
        >>> teacher, student = known_top_k_with_bucket(
        ...     torch.tensor([0.7]).log(), torch.tensor([1]), torch.tensor([0.3, 0.2, 0.5]).log()
        ... )
        >>> [[round(p, 4) for p in side.exp().tolist()] for side in (teacher, student)]
        [[0.7, 0.3], [0.2, 0.8]]
    """
    if teacher_logp_K.shape != ids_K.shape:
        raise SettingError("ids_K.shape", tuple(ids_K.shape), f"give the teacher's, {tuple(teacher_logp_K.shape)}")
    teacher_logp_K, student_K = teacher_logp_K.detach(), _with_bucket(student_logits, ids_K)
    if rest is None:
        mass = teacher_logp_K.exp().sum(-1)
        if (mass > 1.0 + 1e-3).any():
            raise SettingError("teacher_logp_K", mass.max().item(), "give log-probabilities in nats: they sum above 1")
        rest = (1.0 - mass).clamp(min=0.0).log()
    if ids_K.shape[-1] == student_logits.shape[-1]:
        return teacher_logp_K, student_K
    lowest = math.log(torch.finfo(teacher_logp_K.dtype).eps)  # a mass of 0 would forbid all other tokens
    missing_K = torch.nn.functional.pad(teacher_logp_K == -torch.inf, (0, 1))
    teacher_K = torch.cat([teacher_logp_K, rest.detach().unsqueeze(-1).clamp(min=lowest)], dim=-1)
    return teacher_K, student_K.masked_fill(missing_K, -torch.inf)


@dataclass(frozen=True)
class KnownTokens:
    """What is known of a teacher at N actions, where its logits are not: some tokens' log-probabilities, in nats."""

    logp_NK: Tensor
    """Those of its K most probable tokens, in descending order; -inf fills rows of which fewer are known."""
    ids_NK: Tensor
    """int64: the ids of these tokens."""
    rest_N: Tensor
    """The log-probability of all other tokens together."""
    token_logp_N: Tensor
    """The log-probability of the token that was written."""

    def __getitem__(self, actions: slice) -> Self:
        """A run of the actions."""
        return type(self)(*(getattr(self, field.name)[actions] for field in fields(self)))

    def to(self, device: torch.device) -> Self:
        """Return it on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def with_bucket(self, student_logits_NV: Tensor, k: int | None = None) -> tuple[Tensor, Tensor]:
        """Teacher and student over the teacher's top tokens and the bucket, as `known_top_k_with_bucket`.

        Args:
            student_logits_NV: With its gradient.
            k: As if only so many tokens were known; None is all that are.
        """
        logp_NK, rest_N, vocabulary = self.logp_NK, self.rest_N, student_logits_NV.shape[-1]
        assert logp_NK.shape[1] > 0, "over one bucket of all tokens every divergence is 0"
        if logp_NK.shape[1] >= vocabulary:
            whole = bool((logp_NK[:, :vocabulary] > -torch.inf).all())  # else the bucket needs a token at least
            k = min(vocabulary if whole else vocabulary - 1, vocabulary if k is None else k)
        if k is not None and k < logp_NK.shape[1]:
            rest_N = torch.logaddexp(rest_N, logp_NK[:, k:].logsumexp(-1))
        return known_top_k_with_bucket(logp_NK[:, :k], self.ids_NK[:, :k], student_logits_NV, rest_N)


def _with_bucket(logits: Tensor, ids_K: Tensor) -> Tensor:
    logp_V = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    logp_K = logp_V.gather(-1, ids_K)
    if ids_K.shape[-1] == logits.shape[-1]:
        return logp_K
    rest_V = logp_V.scatter(-1, ids_K, float("-inf"))
    return torch.cat([logp_K, rest_V.logsumexp(-1, keepdim=True)], dim=-1)
