"""Attention of G key heads, each of which answers Q query heads, over texts of unequal lengths, with its gradient.

Short rows are read by plain products, some rows and places at a time, so that what they make of each other stays in the
caches: for 32 rows of 104 tokens and 5 heads a third of the time that it takes at once. Of what no token sees, behind
it, and of places where nothing is asked, no scores are formed. Long rows are read by torch's kernel.
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
PLACES = 32
"""Of a row whose queries are answered at a time; of what stands behind them no scores are formed."""


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
    """By plain products over [R G, T Q, D] and [R G, T, D], some rows and places at a time."""

    @staticmethod
    def forward(
        ctx: Any, query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, texts: Texts, place_M: Tensor, scale: float
    ) -> Tensor:
        ctx.texts, ctx.scale, ctx.heads = texts, scale, key_NGD.shape[1]
        ctx.first = int((place_M % texts.width).min()) if len(place_M) else 0
        ctx.save_for_backward(query_MKD, key_NGD, value_NGD, place_M)  # without padding
        query, key, value = _by_heads(ctx, query_MKD, key_NGD, value_NGD, place_M)
        attended = torch.empty_like(query)
        for queries, keys, shares in _shares(ctx, query, key):
            attended[queries] = torch.bmm(shares, value[keys])
        return texts.by_tokens(attended, place_M, ctx.heads, ctx.first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_MKD: Tensor) -> tuple[Tensor | None, ...]:
        query_MKD, key_NGD, value_NGD, place_M = ctx.saved_tensors
        query, key, value = _by_heads(ctx, query_MKD, key_NGD, value_NGD, place_M)
        upstream = ctx.texts.by_heads(upstream_MKD, place_M, ctx.heads, ctx.first)
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for queries, keys, shares in _shares(ctx, query, key):
            of_value[keys] += torch.bmm(shares.mT, upstream[queries])
            slope = torch.bmm(upstream[queries], value[keys].mT)
            slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype).mul_(ctx.scale)
            of_query[queries] = torch.bmm(slope, key[keys])
            of_key[keys] += torch.bmm(slope.mT, query[queries])
        texts = ctx.texts
        return (
            texts.by_tokens(of_query, place_M, ctx.heads, ctx.first),
            *(texts.by_tokens(slope, texts.place_N, ctx.heads) for slope in (of_key, of_value)),
            None, None, None,
        )  # fmt: skip


def _by_heads(ctx: Any, query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, place_M: Tensor) -> list[Tensor]:
    key, value = (ctx.texts.by_heads(x, ctx.texts.place_N, ctx.heads) for x in (key_NGD, value_NGD))
    return [ctx.texts.by_heads(query_MKD, place_M, ctx.heads, ctx.first), key, value]


Where = tuple[slice, slice]
"""In [R G, T Q], or [R G, T]."""


def _shares(ctx: Any, query: Tensor, key: Tensor) -> Iterator[tuple[Where, Where, Tensor]]:
    """Of some queries at a time: where they are, which keys they may see, and softmax(scale Q K^T) over those."""
    texts, heads, first = ctx.texts, ctx.heads, ctx.first
    unseen_RTT = texts.unseen_RTT.expand(texts.rows, -1, -1)
    group = query.shape[1] // (texts.width - first)
    for begin in range(first, texts.width, PLACES):
        end = min(begin + PLACES, texts.width)
        step = max(1, SCORES // (heads * (end - begin) * group * end))
        for start in range(0, texts.rows, step):
            rows = slice(start * heads, (start + step) * heads)
            queries, keys = (rows, slice((begin - first) * group, (end - first) * group)), (rows, slice(end))
            scores = torch.bmm(query[queries], key[keys].mT).mul_(ctx.scale)
            by_places = scores.view(-1, heads, end - begin, group, end)
            by_places.add_(unseen_RTT[start : start + step, None, begin:end, None, :end])
            yield queries, keys, scores.softmax(-1)
