"""Grouped-query attention over packed texts of unequal lengths, with its gradient.

Rows up to `BLOCKED_MAX_WIDTH` are computed by plain matrix products, a block of rows and a chunk of their queries at a
time, so that the scores stay in the CPU's caches: for 32 rows of 104 tokens and 5 heads a third of the time of one
large product. A block is as wide as its longest row, so a batch sorted by length has hardly any padding, and no scores
are computed for keys that no query of a chunk sees or for columns without a query. Longer rows go to torch's kernel.

Dimensions: N packed tokens, M tokens with a query, R rows, T columns, G key heads, Q query heads of each, K = G Q
heads, D numbers of a head. In lower case those of one block: r rows, t columns, n tokens, m heads of tokens (flat).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from rlgkd.lm._autograd import apply_function
from rlgkd.lm.fast.packed import PackedTokens

SCORES_PER_BLOCK = 2**18
"""Attention scores held at a time: a megabyte."""
BLOCKED_MAX_WIDTH = 320
"""Columns of a row up to which plain products are faster than torch's kernel."""
QUERIES_PER_CHUNK = 32
"""Columns of a block whose queries are computed at a time."""


@dataclass(frozen=True)
class _HeadIndex:
    """Moves heads between the packed tokens and a block of rows; query heads of a key head stand side by side."""

    tokens: slice
    """The block's tokens among the packed ones."""
    source_m: Tensor
    """[r G t Q]: the index of each head of the block among those of its tokens; any at padding."""
    target_m: Tensor
    """[n G Q]: the index of each token's heads in the block."""
    padding_m: Tensor
    """The indices of padding in the block."""
    shape: tuple[int, int]
    """[r G, t Q]."""

    @staticmethod
    def build(
        flat_index_M: np.ndarray, rows: slice, width: int, first: int, end: int, key_heads: int, group: int
    ) -> _HeadIndex:
        """Index the tokens of `rows`, all of which stand in the columns from `first` to `end`.

        Args:
            flat_index_M: The flat indices of the tokens of all rows, rising.
            rows: The rows of the block.
            width: Columns of the padded grid.
            first: The first column of the block.
            end: The column after its last.
            key_heads: G.
            group: Q; 1 for keys and values.
        """
        tokens = slice(*np.searchsorted(flat_index_M, (rows.start * width, rows.stop * width)).tolist())
        row_count = rows.stop - rows.start
        columns = end - first
        head_K = np.arange(key_heads * group)
        row_n, column_n = np.divmod(flat_index_M[tokens] - rows.start * width, width)
        column_n -= first
        token_rt = np.full((row_count, columns), -1)
        token_rt[row_n, column_n] = np.arange(len(row_n))
        token_r1t1 = token_rt[:, None, :, None]
        source_rGtQ = token_r1t1.clip(min=0) * key_heads * group + head_K.reshape(key_heads, 1, group)
        target_n = row_n * key_heads * columns * group + column_n * group
        target_nK = target_n[:, None] + head_K // group * columns * group + head_K % group
        padding_m = np.flatnonzero(np.broadcast_to(token_r1t1 < 0, source_rGtQ.shape))
        return _HeadIndex(
            tokens=tokens,
            source_m=torch.from_numpy(source_rGtQ.ravel()),
            target_m=torch.from_numpy(target_nK.ravel()),
            padding_m=torch.from_numpy(padding_m),
            shape=(row_count * key_heads, columns * group),
        )

    def gather(self, x_MKD: Tensor) -> Tensor:
        """[r G, t Q, D]: the block's heads, 0 at padding."""
        x_mD = x_MKD[self.tokens].flatten(0, 1).index_select(0, self.source_m)
        if len(self.padding_m):  # it was filled with heads of the first token
            x_mD.index_fill_(0, self.padding_m, 0.0)
        return x_mD.view(*self.shape, x_MKD.shape[-1])

    def scatter(self, x: Tensor, out_MKD: Tensor) -> None:
        """Write a block's heads [r G, t Q, D] to its tokens; the inverse of `gather`."""
        torch.index_select(x.flatten(0, 1), 0, self.target_m, out=out_MKD[self.tokens].view(-1, x.shape[-1]))


@dataclass(frozen=True)
class _Block:
    """Some rows, as wide as the longest of them."""

    rows: slice
    first: int
    """The first column with a query."""
    end: int
    """The column after the last token."""
    queries: _HeadIndex
    keys: _HeadIndex


@dataclass(frozen=True)
class AttentionPlan:
    """How attention is computed for the queries of some tokens; made once for all layers."""

    flat_index_M: Tensor
    """The flat indices of the tokens with a query."""
    blocks: tuple[_Block, ...] | None
    """None where rows are long, for torch's kernel."""


def plan_attention(
    packed: PackedTokens, flat_indices: Sequence[Tensor], key_heads: int, group: int
) -> tuple[AttentionPlan, ...]:
    """Plan attention for several selections of queries at once, which share the index of the keys.

    Args:
        packed: Keys and values come from all of its tokens; each row has one.
        flat_indices: For each selection the flat indices of the tokens with a query, rising.
        key_heads: G.
        group: Q, query heads of a key head.
    """
    if packed.width > BLOCKED_MAX_WIDTH:
        return tuple(AttentionPlan(flat_index_M, None) for flat_index_M in flat_indices)
    key_index_N = packed.flat_index_N.numpy()
    selections = [key_index_N if index is packed.flat_index_N else index.numpy() for index in flat_indices]
    row_stop_R = np.searchsorted(key_index_N, packed.width * np.arange(1, packed.rows + 1))
    ends = (key_index_N[row_stop_R - 1] % packed.width + 1).tolist()
    firsts = [int((index_M % packed.width).min(initial=packed.width)) for index_M in selections]
    blocks: list[list[_Block]] = [[] for _ in selections]
    start = 0
    while start < packed.rows:
        rows = _next_rows(start, ends, SCORES_PER_BLOCK // (key_heads * group * QUERIES_PER_CHUNK))
        start = rows.stop
        end = max(ends[rows])
        keys = _HeadIndex.build(key_index_N, rows, packed.width, 0, end, key_heads, 1)
        for planned, index_M, first in zip(blocks, selections, firsts, strict=True):
            if end <= first:
                continue
            # Where all tokens have a query and heads are not grouped, queries lie in a block just as keys do.
            if group == 1 and first == 0 and index_M is key_index_N:
                queries = keys
            else:
                queries = _HeadIndex.build(index_M, rows, packed.width, first, end, key_heads, group)
            if queries.tokens.start < queries.tokens.stop:
                planned.append(_Block(rows, first, end, queries, keys))
    plans = zip(flat_indices, blocks, strict=True)
    return tuple(AttentionPlan(flat_index_M, tuple(planned)) for flat_index_M, planned in plans)


def _next_rows(start: int, ends: Sequence[int], columns: int) -> slice:
    """The rows of the next block: as many as fit into so many columns, and no small block at the end.

    A row counts as the longest of all that are left, which is the first one in a micro-batch, whose rows are sorted; of
    others a block is smaller than it might be, never larger.
    """
    left = len(ends) - start
    most = max(1, columns // max(ends[start:]))
    blocks = -(-left // most)
    return slice(start, start + -(-left // blocks))


def packed_attention(
    query_MKD: Tensor, key_NGD: Tensor, value_NGD: Tensor, packed: PackedTokens, plan: AttentionPlan, scale: float
) -> Tensor:
    """[M, K, D]: attention of the planned queries over the tokens that `packed.mask_RTT` lets them see."""
    if plan.blocks is not None:
        output_MKD: Tensor = apply_function(
            _BlockedAttention, query_MKD, key_NGD, value_NGD, packed, plan.blocks, scale
        )
        return output_MKD
    query = packed.unpack(query_MKD, plan.flat_index_M).transpose(1, 2)
    key = packed.unpack(key_NGD, packed.flat_index_N).transpose(1, 2)
    value = packed.unpack(value_NGD, packed.flat_index_N).transpose(1, 2)
    group = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group, dim=1)
    value = value.repeat_interleave(group, dim=1)
    output = scaled_dot_product_attention(query, key, value, attn_mask=packed.mask_RTT[:, None], scale=scale)
    return output.transpose(1, 2).flatten(0, 1)[plan.flat_index_M]


class _BlockedAttention(torch.autograd.Function):
    """Attention by plain products over [r G, t Q, D] and [r G, t, D]; the backward pass computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any,
        query_MKD: Tensor,
        key_NGD: Tensor,
        value_NGD: Tensor,
        packed: PackedTokens,
        blocks: tuple[_Block, ...],
        scale: float,
    ) -> Tensor:
        ctx.packed = packed
        ctx.blocks = blocks
        ctx.scale = scale
        ctx.save_for_backward(query_MKD, key_NGD, value_NGD)
        output_MKD = torch.empty_like(query_MKD, memory_format=torch.contiguous_format)
        for block in blocks:
            query = block.queries.gather(query_MKD)
            key = block.keys.gather(key_NGD)
            value = block.keys.gather(value_NGD)
            output = torch.empty_like(query)
            for queries, end, weights in _attention_weights(query, key, block, packed, scale):
                output[:, queries] = torch.bmm(weights, value[:, :end])
            block.queries.scatter(output, output_MKD)
        return output_MKD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_MKD: Tensor) -> tuple[Tensor | None, ...]:
        query_MKD, key_NGD, value_NGD = ctx.saved_tensors
        # Zeros, since tokens of rows without a query are in no block.
        query_grad_MKD, key_grad_NGD, value_grad_NGD = (
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query_MKD, key_NGD, value_NGD)
        )
        for block in ctx.blocks:
            query = block.queries.gather(query_MKD)
            upstream = block.queries.gather(upstream_MKD)
            key = block.keys.gather(key_NGD)
            value = block.keys.gather(value_NGD)
            query_grad = torch.empty_like(query)
            key_grad = torch.zeros_like(key)
            value_grad = torch.zeros_like(value)
            for queries, end, weights in _attention_weights(query, key, block, ctx.packed, ctx.scale):
                value_grad[:, :end] += torch.bmm(weights.mT, upstream[:, queries])
                score_grad = torch.bmm(upstream[:, queries], value[:, :end].mT)
                # The kernel that autograd calls for softmax itself; torch has no public name for it.
                score_grad = torch._softmax_backward_data(score_grad, weights, -1, weights.dtype).mul_(ctx.scale)
                query_grad[:, queries] = torch.bmm(score_grad, key[:, :end])
                key_grad[:, :end] += torch.bmm(score_grad.mT, query[:, queries])
            block.queries.scatter(query_grad, query_grad_MKD)
            block.keys.scatter(key_grad, key_grad_NGD)
            block.keys.scatter(value_grad, value_grad_NGD)
        return query_grad_MKD, key_grad_NGD, value_grad_NGD, None, None, None


def _attention_weights(
    query: Tensor, key: Tensor, block: _Block, packed: PackedTokens, scale: float
) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield for each chunk of queries: their slice of [t Q], the keys that they may see, and softmax(scale Q K^T)."""
    key_heads = len(key) // (block.rows.stop - block.rows.start)
    group = query.shape[1] // (block.end - block.first)
    same_mask = len(packed.mask_RTT) == 1
    mask_rTT = packed.mask_RTT if same_mask else packed.mask_RTT[block.rows]
    mask_rGTQT = mask_rTT[:, None, :, None].expand(-1, 1 if same_mask else key_heads, -1, group, -1)
    for begin in range(block.first, block.end, QUERIES_PER_CHUNK):
        end = min(begin + QUERIES_PER_CHUNK, block.end)
        queries = slice((begin - block.first) * group, (end - block.first) * group)
        mask = mask_rGTQT[:, :, begin:end, :, :end].flatten(2, 3).flatten(0, 1)
        scores = torch.baddbmm(mask, query[:, queries], key[:, :end].mT, alpha=scale)
        yield queries, end, scores.softmax(-1)
