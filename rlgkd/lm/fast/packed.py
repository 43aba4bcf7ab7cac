"""Packed tokens: rows of unequal lengths as one flat sequence, almost without padding.

Dimensions: N packed tokens, R rows, T columns, as many as the longest row has tokens, K heads, D numbers of a head, M
any selection of tokens. A flat index counts the columns of the padded grid: row * T + column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlgkd.lm.attention_mask import additive_mask
from rlgkd.lm.linear import few_sizes


@dataclass(frozen=True)
class PackedTokens:
    """N tokens of R rows: flat for the layers, with their index in the padded grid [R, T] for attention."""

    token_N: Tensor
    position_N: Tensor
    flat_index_N: Tensor
    """Rising."""
    rows: int
    width: int
    """T."""
    mask_RTT: Tensor
    """[R or 1, T, T], added to attention scores: 0 where the token of the second axis sees that of the last, else the
    lowest finite number. No token sees a later column."""

    @staticmethod
    def pack(
        tokens_RT: Tensor, positions_RT: Tensor, is_token_RT: Tensor, visible_RTT: Tensor, dtype: torch.dtype
    ) -> PackedTokens:
        """Pack the tokens of rows; `is_token_RT` is false at padding, `visible_RTT` true where one token sees another.

        N is rounded up with padding to one of few sizes (rlgkd.lm.linear.few_sizes); what the grid lacks of it is added
        in rows of its own.
        """
        tokens = int(is_token_RT.sum())
        extra = few_sizes(tokens) - tokens
        missing = extra - (is_token_RT.numel() - tokens)
        if missing > 0:
            more = -(-missing // tokens_RT.shape[1])
            tokens_RT, positions_RT, is_token_RT = (
                torch.cat([x, x.new_zeros(more, x.shape[1])]) for x in (tokens_RT, positions_RT, is_token_RT)
            )
            if len(visible_RTT) > 1:
                visible_RTT = torch.cat([visible_RTT, torch.ones_like(visible_RTT[:more]).tril_()])
        is_token = is_token_RT.flatten()
        flat_index_N = (is_token | ((~is_token).cumsum(0) <= extra)).nonzero()[:, 0]
        rows, width = tokens_RT.shape
        return PackedTokens(
            token_N=tokens_RT.flatten()[flat_index_N],
            position_N=positions_RT.flatten()[flat_index_N],
            flat_index_N=flat_index_N,
            rows=rows,
            width=width,
            mask_RTT=additive_mask(visible_RTT, dtype),
        )

    @staticmethod
    def pack_right_padded(tokens_RT: Tensor, attention_RT: Tensor, dtype: torch.dtype) -> PackedTokens:
        """Pack rows of one text each, padded on the right; `attention_RT` is 0 at padding."""
        rows, width = tokens_RT.shape
        visible_1TT = torch.ones(1, width, width, dtype=torch.bool, device=tokens_RT.device).tril_()
        positions_RT = torch.arange(width, device=tokens_RT.device).expand(rows, -1)
        return PackedTokens.pack(tokens_RT, positions_RT, attention_RT.bool(), visible_1TT, dtype)

    def unpack(self, x_MKD: Tensor, flat_index_M: Tensor) -> Tensor:
        """[R, T, K, D]: the tokens' values on the padded grid, 0 elsewhere."""
        size = self.rows * self.width
        if len(flat_index_M) < size:
            x_MKD = x_MKD.new_zeros(size, *x_MKD.shape[1:]).index_copy_(0, flat_index_M, x_MKD)
        return x_MKD.view(self.rows, self.width, *x_MKD.shape[1:])

    def packed_index(self, flat_index_M: Tensor) -> Tensor:
        """[M]: which of the N tokens have these flat indices."""
        packed_index_RT = self.flat_index_N.new_zeros(self.rows * self.width)
        packed_index_RT[self.flat_index_N] = torch.arange(len(self.flat_index_N), device=packed_index_RT.device)
        return packed_index_RT[flat_index_M]
