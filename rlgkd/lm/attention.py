"""Attention of G key heads, each of which answers Q query heads, over texts of unequal lengths, with its gradient.

Short rows are read by plain products, some rows at a time, so that what they make of each other stays in the caches:
for 32 rows of 104 tokens and 5 heads a third of the time that it takes at once. Long ones by torch's kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from rlgkd.lm.texts import Texts

SCORES = 2**18
"""Scores of attention at a time: a megabyte."""
SHORT = 320
"""Places of a row up to which plain products are the faster."""


def attended(
    query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, texts: Texts, place_M: Tensor, scale: float
) -> Tensor:
    """[M, K, D]: what the queries, which stand at these places, see."""
    if texts.width <= SHORT:
        return cast(Tensor, cast(Any, _Attended).apply(query_MKD, key_NGD, value_NGD, texts, place_M, scale))
    query, key, value = (
        texts.spread(x, place).transpose(1, 2)
        for x, place in ((query_MKD, place_M), (key_NGD, texts.place_N), (value_NGD, texts.place_N))
    )
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    attended = scaled_dot_product_attention(query, key, value, attn_mask=texts.unseen_RTT[:, None], scale=scale)
    return attended.transpose(1, 2).flatten(0, 1)[place_M]


class _Attended(torch.autograd.Function):
    """By plain products over [R G, Q T, D] and [R G, T, D], some rows at a time: their scores stay in the caches."""

    @staticmethod
    def forward(
        ctx: Any, query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, texts: Texts, place_M: Tensor, scale: float
    ) -> Tensor:
        ctx.texts, ctx.scale, ctx.heads = texts, scale, key_NGD.shape[1]
        ctx.save_for_backward(query_MKD, key_NGD, value_NGD, place_M)  # without padding
        query, key, value = _by_heads(ctx, query_MKD, key_NGD, value_NGD, place_M)
        attended = torch.empty_like(query)
        for some, shares in _shares(ctx, query, key):
            torch.bmm(shares, value[some], out=attended[some])
        return texts.by_tokens(attended, place_M, ctx.heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_MKD: Tensor) -> tuple[Tensor | None, ...]:
        query_MKD, key_NGD, value_NGD, place_M = ctx.saved_tensors
        query, key, value = _by_heads(ctx, query_MKD, key_NGD, value_NGD, place_M)
        upstream = ctx.texts.by_heads(upstream_MKD, place_M, ctx.heads)
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        for some, shares in _shares(ctx, query, key):
            torch.bmm(shares.mT, upstream[some], out=of_value[some])
            slope = torch.bmm(upstream[some], value[some].mT)
            slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype).mul_(ctx.scale)
            torch.bmm(slope, key[some], out=of_query[some])
            torch.bmm(slope.mT, query[some], out=of_key[some])
        places = place_M, ctx.texts.place_N, ctx.texts.place_N
        slopes = zip((of_query, of_key, of_value), places, strict=True)
        return *(ctx.texts.by_tokens(slope, place, ctx.heads) for slope, place in slopes), None, None, None


def _by_heads(ctx: Any, query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, place_M: Tensor) -> list[Tensor]:
    places = place_M, ctx.texts.place_N, ctx.texts.place_N
    parts = zip((query_MKD, key_NGD, value_NGD), places, strict=True)
    return [ctx.texts.by_heads(part, place, ctx.heads) for part, place in parts]


def _shares(ctx: Any, query: Tensor, key: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Of some rows at a time: which of [R G] they are, and their softmax(scale Q K^T), [r G, Q T, T]."""
    texts, width = ctx.texts, ctx.texts.width
    unseen_R1TT = texts.unseen_RTT[:, None].expand(texts.rows, -1, -1, -1)
    step = max(1, SCORES * texts.rows // (query.shape[0] * query.shape[1] * width))
    for start in range(0, texts.rows, step):
        rows = slice(start, start + step)
        some = slice(start * ctx.heads, (start + step) * ctx.heads)
        scores = torch.bmm(query[some], key[some].mT).mul_(ctx.scale)
        scores.view(-1, query.shape[1] * ctx.heads // width, width, width).add_(unseen_R1TT[rows])
        yield some, scores.softmax(-1)
