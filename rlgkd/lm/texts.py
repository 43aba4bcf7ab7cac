"""Texts for layers that see tokens one below the other, without padding, and for attention, which sees them as rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """N tokens in R rows of T places."""

    token_N: Tensor
    position_N: Tensor
    place_N: Tensor
    """Where each stands in the flattened [R, T]."""
    rows: int
    width: int
    unseen_RTT: Tensor
    """[R or 1, T, T]: 0 where the token of the second axis sees that of the last, else the lowest number there is."""

    @staticmethod
    def of(tokens_RT: Tensor, positions_RT: Tensor, there_RT: Tensor, seen_RTT: Tensor, dtype: torch.dtype) -> Texts:
        """Of rows with padding where `there_RT` is false; `seen_RTT` is true where a token sees another."""
        place_N = there_RT.flatten().nonzero()[:, 0]
        unseen_RTT = torch.zeros(seen_RTT.shape, dtype=dtype, device=seen_RTT.device)
        unseen_RTT.masked_fill_(~seen_RTT, torch.finfo(dtype).min)
        rows, width = tokens_RT.shape
        return Texts(
            tokens_RT.flatten()[place_N], positions_RT.flatten()[place_N], place_N, rows, width, unseen_RTT
        )  # fmt: skip

    @staticmethod
    def padded(tokens_RT: Tensor, attention_RT: Tensor, dtype: torch.dtype) -> Texts:
        """Of rows that are padded on the right."""
        rows, width = tokens_RT.shape
        seen_1TT = torch.ones(1, width, width, dtype=torch.bool, device=tokens_RT.device).tril_()
        positions_RT = torch.arange(width, device=tokens_RT.device).expand(rows, -1)
        return Texts.of(tokens_RT, positions_RT, attention_RT.bool(), seen_1TT, dtype)

    def spread(self, x_NKD: Tensor, place_N: Tensor) -> Tensor:
        """[R, T, K, D]: what belongs to tokens at these places, and 0 where none stands."""
        size = self.rows * self.width
        if len(place_N) < size:
            x_NKD = x_NKD.new_zeros(size, *x_NKD.shape[1:]).index_copy_(0, place_N, x_NKD)
        return x_NKD.view(self.rows, self.width, *x_NKD.shape[1:])

    def by_heads(self, x_NKD: Tensor, place_N: Tensor, heads: int) -> Tensor:
        """[R G, Q T, D]: the same, in the order in which G heads see all their queries, or keys, at once."""
        spread: Tensor = self.spread(x_NKD, place_N).unflatten(2, (heads, -1))
        return spread.permute(0, 2, 3, 1, 4).reshape(self.rows * heads, -1, x_NKD.shape[-1])

    def by_tokens(self, x: Tensor, place_N: Tensor, heads: int) -> Tensor:
        """[N, K, D]: the way back from `by_heads`."""
        rows = x.view(self.rows, heads, -1, self.width, x.shape[-1]).permute(0, 3, 1, 2, 4)
        flat: Tensor = rows.reshape(self.rows * self.width, -1, x.shape[-1])
        return flat if len(place_N) == len(flat) else flat[place_N]

    def number(self, place_M: Tensor) -> Tensor:
        """[M]: which of the N tokens stand at these places of the flattened [R, T]."""
        number_RT = self.place_N.new_zeros(self.rows * self.width)
        number_RT[self.place_N] = torch.arange(len(self.place_N), device=number_RT.device)
        return number_RT[place_M]
