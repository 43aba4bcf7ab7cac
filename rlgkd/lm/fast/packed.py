"""Rows of tokens packed into one flat sequence for the layers, and as padded rows for attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedTokens:
    """N tokens in R rows of T places, hardly any of them padding."""

    token_N: Tensor
    position_N: Tensor
    place_N: Tensor
    """Where each stands in the flattened [R, T]."""
    rows: int
    width: int
    unseen_RTT: Tensor
    """[R or 1, T, T]: 0 where the token of the second axis sees that of the last, else the lowest number there is; none
    sees what stands behind it."""

    @staticmethod
    def of(
        tokens_RT: Tensor, positions_RT: Tensor, there_RT: Tensor, seen_RTT: Tensor, dtype: torch.dtype
    ) -> PackedTokens:
        """Of rows with padding where `there_RT` is false; `seen_RTT` is true where a token sees another.

        N is rounded up to one of 32 sizes from each power of two to the next, by padding if there is any: products
        prepare themselves for each size anew (rlgkd.lm.linear).
        """
        there = there_RT.flatten()
        tokens = int(there.sum())
        more = -tokens % max(1, 2 ** (tokens.bit_length() - 6))
        place_N = (there | ((~there).cumsum(0) <= more)).nonzero()[:, 0]
        rows, width = tokens_RT.shape
        unseen_RTT = unseen(seen_RTT, dtype)
        return PackedTokens(
            tokens_RT.flatten()[place_N], positions_RT.flatten()[place_N], place_N, rows, width, unseen_RTT
        )  # fmt: skip

    @staticmethod
    def padded(tokens_RT: Tensor, attention_RT: Tensor, dtype: torch.dtype) -> PackedTokens:
        """Of rows that are padded on the right."""
        rows, width = tokens_RT.shape
        seen_1TT = torch.ones(1, width, width, dtype=torch.bool, device=tokens_RT.device).tril_()
        positions_RT = torch.arange(width, device=tokens_RT.device).expand(rows, -1)
        return PackedTokens.of(tokens_RT, positions_RT, attention_RT.bool(), seen_1TT, dtype)

    def spread(self, x_NKD: Tensor, place_N: Tensor) -> Tensor:
        """[R, T, K, D]: what belongs to tokens at these places, and 0 where none stands."""
        size = self.rows * self.width
        if len(place_N) < size:
            x_NKD = x_NKD.new_zeros(size, *x_NKD.shape[1:]).index_copy_(0, place_N, x_NKD)
        return x_NKD.view(self.rows, self.width, *x_NKD.shape[1:])

    def number(self, place_M: Tensor) -> Tensor:
        """[M]: which of the N tokens stand at these places of the flattened [R, T]."""
        number_RT = self.place_N.new_zeros(self.rows * self.width)
        number_RT[self.place_N] = torch.arange(len(self.place_N), device=number_RT.device)
        return number_RT[place_M]


def unseen(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores of attention: 0 where `seen`, else the lowest number there is."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
