"""Two tokenisations of the same bytes, cut where both end a token; what a teacher with other tokens says of each span.

The tokens of a student and of a teacher with another tokenizer end at different bytes. Where both end one, the text is
cut, and within such a span log p_T and log p_S are sums over each side's tokens, so that the span's log-ratio is one of
two probabilities of the same bytes:

    d(span) = sum_(teacher's tokens) log p_T - sum_(student's tokens) log p_S

Every one of the student's tokens in the span has d as its sampled signal: each of them has a say in all that the span
becomes, and which of them the teacher objected to is not known. What is written down as the divergence is d divided by
their number, so that its sum over a text is log p_S(text) - log p_T(text). A span of one token of each side is the case
of one tokenizer.

Not seen: other tokenisations of the same bytes, to which either model gives some probability too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlgkd.ops.top_k_bucket import KnownTokens

Ids = np.ndarray


def cut_spans(bytes_L: Sequence[int], other_bytes_M: Sequence[int]) -> tuple[Ids, Ids]:
    """Number the spans of two tokenisations of the same bytes.

    Args:
        bytes_L: How many bytes each token of one has, 0 or more; a token without any belongs to the span before it.
        other_bytes_M: The same of the other.

    Returns:
        int64 [L] and [M]: the number of each token's span, from 0, which do not fall.

    Raises:
        ValueError: The two have different numbers of bytes, or one has no token where the other has some.

    Examples:
        >>> cut_spans([1, 2, 3], [3, 1, 2])  # a|bc|def and abc|d|ef
        (array([0, 0, 1]), array([0, 1, 1]))
    """
    end_L, end_M = (np.cumsum(np.asarray(sizes, dtype=np.int64)) for sizes in (bytes_L, other_bytes_M))
    if not len(end_L) or not len(end_M):
        if len(end_L) or len(end_M):
            raise ValueError(f"one has {len(end_L)} tokens, the other {len(end_M)}")
        return end_L, end_M
    if end_L[-1] != end_M[-1]:
        raise ValueError(f"one has {end_L[-1]} bytes, the other {end_M[-1]}")
    cuts = np.intersect1d(end_L, end_M)
    cuts = cuts[cuts > 0] if cuts[-1] else cuts
    return np.searchsorted(cuts, end_L), np.searchsorted(cuts, end_M)


@dataclass(frozen=True)
class KnownSpans(KnownTokens):
    """What is known of a teacher with other tokens at N actions: the probability of the bytes of each one's span.

    Of a `KnownTokens`, `token_logp_N` is the teacher's log-probability of the whole span; there are no top tokens.
    """

    other_logp_N: Tensor
    """The student's log-probability, in nats, of the span's other tokens, as it sampled them; 0 if there are none."""
    tokens_N: Tensor
    """How many tokens of the student's the span has, as floats; 1 or more."""


def known_spans(
    teacher_logp_M: Tensor, teacher_span_M: Tensor, student_logp_N: Tensor, student_span_N: Tensor, spans: int
) -> KnownSpans:
    """Sum both sides over spans.

    Args:
        teacher_logp_M: Log-probabilities of the teacher's M tokens, in nats.
        teacher_span_M: The number of each one's span, in 0..spans-1.
        student_logp_N: Those of the student's N tokens, as it sampled them.
        student_span_N: The number of each one's span.
        spans: How many there are.

    Examples:
        >>> known = known_spans(
        ...     torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 1, 1]),
        ...     torch.tensor([-1.0, -0.5, -3.0]), torch.tensor([0, 0, 1]), spans=2,
        ... )
        >>> known.token_logp_N.tolist(), known.other_logp_N.tolist(), known.tokens_N.tolist()
        ([-1.0, -1.0, -6.0], [-0.5, -1.0, 0.0], [2.0, 2.0, 1.0])
    """
    teacher_S, student_S = (
        values.new_zeros(spans).index_add(0, span, values)
        for values, span in ((teacher_logp_M, teacher_span_M), (student_logp_N, student_span_N))
    )
    tokens_N = torch.bincount(student_span_N, minlength=spans)[student_span_N].to(student_logp_N.dtype)
    nothing_N0 = student_logp_N.new_zeros(len(student_logp_N), 0)
    # A sum of one is that one to the bit, so nothing is left of it here.
    other_N = student_S[student_span_N] - student_logp_N
    return KnownSpans(
        logp_NK=nothing_N0,
        ids_NK=nothing_N0.long(),
        rest_N=torch.zeros_like(student_logp_N),
        token_logp_N=teacher_S[student_span_N],
        other_logp_N=other_N,
        tokens_N=tokens_N,
    )
