"""Attention of G key heads, each of which answers Q query heads, over texts of unequal lengths, with its gradient.

Short rows are read by plain products, some rows and places at a time, so that what they make of each other stays in the
caches: for 32 rows of 104 tokens and 5 heads a third of the time that it takes at once. Some rows are as wide as their
longest, so in batches that are sorted by length there is hardly any padding; and of what no token sees, behind it, and
of places where nothing is asked, no scores are formed. Long rows are read by torch's kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
"""Of a row whose queries are answered at a time."""


@dataclass(frozen=True)
class Part:
    """Those tokens of some rows that stand from a place of each on."""

    which: slice
    """Among all there are."""
    place_n: Tensor
    """Where each stands in the flattened [r, t]."""
    rows: int
    width: int

    @staticmethod
    def of(place_M: Tensor, rows: slice, row_width: int, first: int, end: int) -> Part:
        """Of tokens that stand in this order at these places of rows of `row_width`, those from `first` to `end`."""
        bounds = torch.tensor([rows.start * row_width, rows.stop * row_width], device=place_M.device)
        which = slice(*torch.searchsorted(place_M, bounds).tolist())
        place_n = place_M[which] - rows.start * row_width
        place_n = place_n // row_width * (end - first) + place_n % row_width - first
        return Part(which, place_n, rows.stop - rows.start, end - first)

    def by_heads(self, x_MKD: Tensor, heads: int) -> Tensor:
        """[r G, t Q, D]: what belongs to these tokens, as each of G heads sees it, and 0 where none stands."""
        x_nKD, size = x_MKD[self.which], self.rows * self.width
        if len(self.place_n) < size:
            x_nKD = x_nKD.new_zeros(size, *x_nKD.shape[1:]).index_copy_(0, self.place_n, x_nKD)
        by_rows = x_nKD.view(self.rows, self.width, heads, -1, x_nKD.shape[-1])
        return by_rows.transpose(1, 2).reshape(self.rows * heads, -1, x_nKD.shape[-1])

    def put(self, x: Tensor, heads: int, into_MKD: Tensor) -> None:
        """The way back from `by_heads`."""
        by_heads = x.view(self.rows, heads, self.width, -1, x.shape[-1]).transpose(1, 2)
        into_nKD = into_MKD[self.which]
        if len(self.place_n) == self.rows * self.width:
            into_nKD.view(by_heads.shape).copy_(by_heads)
        else:
            torch.index_select(by_heads.reshape(-1, *into_nKD.shape[1:]), 0, self.place_n, out=into_nKD)


@dataclass(frozen=True)
class Block:
    """Some rows, as wide as the longest of them, and what is asked of them."""

    rows: slice
    first: int
    """The place before which nothing is asked."""
    queries: Part
    keys: Part


@dataclass(frozen=True)
class Asked:
    """Where queries stand in texts; `blocks` is None where rows are long."""

    place_M: Tensor
    blocks: tuple[Block, ...] | None

    @staticmethod
    def of(texts: Texts, place_M: Tensor, query_heads: int) -> Asked:
        """Of queries that stand at these places, in rising order, of the flattened [R, T]."""
        if texts.width > SHORT:
            return Asked(place_M, None)
        behind_R = torch.searchsorted(texts.place_N, texts.width * torch.arange(1, texts.rows + 1))
        ends = (texts.place_N[behind_R - 1] % texts.width + 1).tolist()
        first = int((place_M % texts.width).min()) if len(place_M) else 0
        blocks, start = [], 0
        while start < texts.rows:
            left, most = texts.rows - start, max(1, SCORES // (query_heads * PLACES * max(ends[start:])))
            rows = slice(start, start + -(-left // -(-left // most)))  # no small ones in the end
            start, end = rows.stop, max(ends[rows])
            if end > first:
                queries = Part.of(place_M, rows, texts.width, first, end)
                blocks.append(Block(rows, first, queries, Part.of(texts.place_N, rows, texts.width, 0, end)))
        return Asked(place_M, tuple(blocks))


def attended(query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, texts: Texts, asked: Asked, scale: float) -> Tensor:
    """[M, K, D]: what the queries see."""
    if asked.blocks is not None:
        return cast(Tensor, cast(Any, _Attended).apply(query_MKD, key_NGD, value_NGD, texts, asked.blocks, scale))
    query, key, value = (
        texts.spread(x, place).transpose(1, 2)
        for x, place in ((query_MKD, asked.place_M), (key_NGD, texts.place_N), (value_NGD, texts.place_N))
    )
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    attended = scaled_dot_product_attention(query, key, value, attn_mask=texts.unseen_RTT[:, None], scale=scale)
    return attended.transpose(1, 2).flatten(0, 1)[asked.place_M]


class _Attended(torch.autograd.Function):
    """By plain products over [r G, t Q, D] and [r G, t, D]."""

    @staticmethod
    def forward(
        ctx: Any, query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, texts: Texts, blocks: tuple[Block, ...],
        scale: float,
    ) -> Tensor:  # fmt: skip
        ctx.texts, ctx.blocks, ctx.scale, heads = texts, blocks, scale, key_NGD.shape[1]
        ctx.save_for_backward(query_MKD, key_NGD, value_NGD)
        attended_MKD = torch.empty_like(query_MKD)
        for block in blocks:
            query = block.queries.by_heads(query_MKD, heads)
            key, value = (block.keys.by_heads(x, heads) for x in (key_NGD, value_NGD))
            attended = torch.empty_like(query)
            for queries, end, shares in _shares(query, key, block, texts, scale):
                attended[:, queries] = torch.bmm(shares, value[:, :end])
            block.queries.put(attended, heads, attended_MKD)
        return attended_MKD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_MKD: Tensor) -> tuple[Tensor | None, ...]:
        query_MKD, key_NGD, value_NGD = ctx.saved_tensors
        of_query_MKD, of_key_NGD, of_value_NGD = (torch.zeros_like(x) for x in (query_MKD, key_NGD, value_NGD))
        heads = key_NGD.shape[1]
        for block in ctx.blocks:
            query, upstream = (block.queries.by_heads(x, heads) for x in (query_MKD, upstream_MKD))
            key, value = (block.keys.by_heads(x, heads) for x in (key_NGD, value_NGD))
            of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for queries, end, shares in _shares(query, key, block, ctx.texts, ctx.scale):
                of_value[:, :end] += torch.bmm(shares.mT, upstream[:, queries])
                slope = torch.bmm(upstream[:, queries], value[:, :end].mT)
                slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype).mul_(ctx.scale)
                of_query[:, queries] = torch.bmm(slope, key[:, :end])
                of_key[:, :end] += torch.bmm(slope.mT, query[:, queries])
            block.queries.put(of_query, heads, of_query_MKD)
            block.keys.put(of_key, heads, of_key_NGD)
            block.keys.put(of_value, heads, of_value_NGD)
        return of_query_MKD, of_key_NGD, of_value_NGD, None, None, None


def _shares(
    query: Tensor, key: Tensor, block: Block, texts: Texts, scale: float
) -> Iterator[tuple[slice, int, Tensor]]:
    """Of some queries at a time: where they are in [t Q], how many keys they may see, and softmax(scale Q K^T)."""
    first, width = block.first, block.keys.width
    heads, group = len(query) // block.keys.rows, query.shape[1] // block.queries.width
    alike = len(texts.unseen_RTT) == 1
    unseen_rTT = texts.unseen_RTT if alike else texts.unseen_RTT[block.rows]
    unseen_rGTQT = unseen_rTT[:, None, :, None].expand(-1, 1 if alike else heads, -1, group, -1)
    for begin in range(first, width, PLACES):
        end = min(begin + PLACES, width)
        queries = slice((begin - first) * group, (end - first) * group)
        unseen = unseen_rGTQT[:, :, begin:end, :, :end].flatten(2, 3).flatten(0, 1)
        scores = torch.baddbmm(unseen, query[:, queries], key[:, :end].mT, alpha=scale)
        yield queries, end, scores.softmax(-1)
