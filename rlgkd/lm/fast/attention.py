"""Attention of G key heads, each of which answers Q query heads, over texts of unequal lengths, with its gradient.

Short rows are read by plain products, some rows and places at a time, so that what they make of each other stays in the
caches: for 32 rows of 104 tokens and 5 heads a third of the time that it takes at once. Some rows are as wide as their
longest, so in batches that are sorted by length there is hardly any padding; and of what no token sees, behind it, and
of places where nothing is asked, no scores are formed. Long rows are read by torch's kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from rlgkd.lm.fast.packed import PackedTokens

SCORES = 2**18
"""Scores of attention at a time: a megabyte."""
SHORT = 320
"""Places of a row up to which plain products are the faster."""
PLACES = 32
"""Of a row whose queries are answered at a time."""


@dataclass(frozen=True)
class Part:
    """The heads of those tokens of r rows that stand from a place of each on, by rows: [r, t], G heads of Q each."""

    which: slice
    """Of the tokens, among all there are."""
    from_m: Tensor
    """[r G t Q]: which of their heads each is, any where no token stands."""
    to_m: Tensor
    """[n G Q]: where each of their heads stands."""
    absent_m: Tensor
    """Where no token stands."""
    shape: tuple[int, int]

    @staticmethod
    def of(place_M: np.ndarray, rows: slice, row_width: int, first: int, end: int, heads: int, group: int) -> Part:
        """Of tokens that stand in this order at these places of rows of `row_width`, those from `first` to `end`.

        Outside of these stands none in `rows`.
        """
        start, stop = rows.start * row_width, rows.stop * row_width
        which = slice(*np.searchsorted(place_M, (start, stop)).tolist())
        r, t, number = rows.stop - rows.start, end - first, np.arange(heads * group)
        row_n, place_n = np.divmod(place_M[which] - start, row_width)
        place_n -= first
        token_rt = np.full((r, t), -1)
        token_rt[row_n, place_n] = np.arange(len(row_n))
        token_r1t1 = token_rt[:, None, :, None]
        from_rGtQ = token_r1t1.clip(min=0) * heads * group + number.reshape(heads, 1, group)
        to_n = row_n * heads * t * group + place_n * group
        to_nK = to_n[:, None] + number // group * t * group + number % group
        absent = np.flatnonzero(np.broadcast_to(token_r1t1 < 0, from_rGtQ.shape))
        from_m, to_m, absent_m = (torch.from_numpy(numbers.ravel()) for numbers in (from_rGtQ, to_nK, absent))
        return Part(which, from_m, to_m, absent_m, (r * heads, t * group))

    def by_rows(self, x_MKD: Tensor) -> Tensor:
        """[r G, t Q, D]: what belongs to these heads, and 0 where no token stands."""
        x_mD = x_MKD[self.which].flatten(0, 1).index_select(0, self.from_m)
        if len(self.absent_m):
            x_mD.index_fill_(0, self.absent_m, 0.0)
        return x_mD.view(*self.shape, x_MKD.shape[-1])

    def put(self, x: Tensor, into_MKD: Tensor) -> None:
        """The way back from `by_rows`."""
        torch.index_select(x.flatten(0, 1), 0, self.to_m, out=into_MKD[self.which].view(-1, x.shape[-1]))


@dataclass(frozen=True)
class Block:
    """Some rows, as wide as the longest of them, and what is asked of them."""

    rows: slice
    first: int
    """The place before which nothing is asked."""
    end: int
    queries: Part
    keys: Part


@dataclass(frozen=True)
class Asked:
    """Where queries stand in texts; `blocks` is None where rows are long."""

    place_M: Tensor
    blocks: tuple[Block, ...] | None

    @staticmethod
    def of(texts: PackedTokens, places: Sequence[Tensor], heads: int, group: int) -> tuple[Asked, ...]:
        """For each of `places`: of queries that stand there, in rising order, in the flattened [R, T].

        Each row has a token.
        """
        if texts.width > SHORT:
            return tuple(Asked(place_M, None) for place_M in places)
        place_N = texts.place_N.numpy()
        given = [place_N if place_M is texts.place_N else place_M.numpy() for place_M in places]
        behind_R = np.searchsorted(place_N, texts.width * np.arange(1, texts.rows + 1))
        ends = (place_N[behind_R - 1] % texts.width + 1).tolist()
        firsts = [int((place_M % texts.width).min(initial=texts.width)) for place_M in given]
        blocks: list[list[Block]] = [[] for _ in places]
        start = 0
        while start < texts.rows:
            left, most = texts.rows - start, max(1, SCORES // (heads * group * PLACES * max(ends[start:])))
            rows = slice(start, start + -(-left // -(-left // most)))  # no small ones in the end
            start, end = rows.stop, max(ends[rows])
            keys = Part.of(place_N, rows, texts.width, 0, end, heads, 1)
            for some, place_M, first in zip(blocks, given, firsts, strict=True):
                if end > first:
                    same = group == 1 and first == 0 and place_M is place_N
                    queries = keys if same else Part.of(place_M, rows, texts.width, first, end, heads, group)
                    if queries.which.start < queries.which.stop:
                        some.append(Block(rows, first, end, queries, keys))
        return tuple(Asked(place_M, tuple(some)) for place_M, some in zip(places, blocks, strict=True))


def attended(
    query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, texts: PackedTokens, asked: Asked, scale: float
) -> Tensor:
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
        ctx: Any, query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, texts: PackedTokens, blocks: tuple[Block, ...],
        scale: float,
    ) -> Tensor:  # fmt: skip
        ctx.texts, ctx.blocks, ctx.scale = texts, blocks, scale
        ctx.save_for_backward(query_MKD, key_NGD, value_NGD)
        attended_MKD = torch.empty_like(query_MKD, memory_format=torch.contiguous_format)
        for block in blocks:
            query = block.queries.by_rows(query_MKD)
            key, value = (block.keys.by_rows(x) for x in (key_NGD, value_NGD))
            attended = torch.empty_like(query)
            for queries, end, shares in _shares(query, key, block, texts, scale):
                attended[:, queries] = torch.bmm(shares, value[:, :end])
            block.queries.put(attended, attended_MKD)
        return attended_MKD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_MKD: Tensor) -> tuple[Tensor | None, ...]:
        query_MKD, key_NGD, value_NGD = ctx.saved_tensors
        of_query_MKD, of_key_NGD, of_value_NGD = (
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query_MKD, key_NGD, value_NGD)
        )
        for block in ctx.blocks:
            query, upstream = (block.queries.by_rows(x) for x in (query_MKD, upstream_MKD))
            key, value = (block.keys.by_rows(x) for x in (key_NGD, value_NGD))
            of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
            for queries, end, shares in _shares(query, key, block, ctx.texts, ctx.scale):
                of_value[:, :end] += torch.bmm(shares.mT, upstream[:, queries])
                slope = torch.bmm(upstream[:, queries], value[:, :end].mT)
                slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype).mul_(ctx.scale)
                of_query[:, queries] = torch.bmm(slope, key[:, :end])
                of_key[:, :end] += torch.bmm(slope.mT, query[:, queries])
            block.queries.put(of_query, of_query_MKD)
            block.keys.put(of_key, of_key_NGD)
            block.keys.put(of_value, of_value_NGD)
        return of_query_MKD, of_key_NGD, of_value_NGD, None, None, None


def _shares(
    query: Tensor, key: Tensor, block: Block, texts: PackedTokens, scale: float
) -> Iterator[tuple[slice, int, Tensor]]:
    """Of some queries at a time: where they are in [t Q], how many keys they may see, and softmax(scale Q K^T)."""
    heads, group = len(key) // (block.rows.stop - block.rows.start), query.shape[1] // (block.end - block.first)
    alike = len(texts.unseen_RTT) == 1
    unseen_rTT = texts.unseen_RTT if alike else texts.unseen_RTT[block.rows]
    unseen_rGTQT = unseen_rTT[:, None, :, None].expand(-1, 1 if alike else heads, -1, group, -1)
    for begin in range(block.first, block.end, PLACES):
        end = min(begin + PLACES, block.end)
        queries = slice((begin - block.first) * group, (end - block.first) * group)
        unseen = unseen_rGTQT[:, :, begin:end, :, :end].flatten(2, 3).flatten(0, 1)
        scores = torch.baddbmm(unseen, query[:, queries], key[:, :end].mT, alpha=scale)
        yield queries, end, scores.softmax(-1)
