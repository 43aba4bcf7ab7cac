"""What a layer is made of for one token a row, beside its products: norms, rotations and attention.

`CpuDecodeOps` is for float32 on a CPU. A call of torch takes longer there than what it computes for a small model, and
torch's own kernels are no help: that for attention is made for blocks of tokens and takes up to twice as long for one,
its norm is ten calls. `TorchDecodeOps` takes them: they add up in float32 what is in half precision, and an accelerator
or torch's compiler, makes one of several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm, scaled_dot_product_attention, softmax

from rlgkd.lm.fast.autograd_ops import signed, turned


class DecodeOps(Protocol):
    """Made of cos and sin, [T, D], by which the heads of a token in each of T places are rotated.

    Z = S G: each of G key heads of each of S rows, to attention, is a row of its own.
    """

    def __init__(self, cos_TD: Tensor, sin_TD: Tensor, *, heads: int, still: int, eps: float) -> None:
        """Of so many heads, the last of which are `still`; `eps` is that of norms."""
        ...

    def norm(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """As rlgkd.lm.fast.autograd_ops.normed."""
        ...

    def in_order(self, x: Tensor, axis: int) -> Tensor:
        """What belongs to heads along an axis, in the order in which `turned` takes them."""
        ...

    def turns(self, place_S: Tensor) -> tuple[Tensor, ...]:
        """The rotations of tokens in these places."""
        ...

    def turned(self, heads_SKD: Tensor, turns: tuple[Tensor, ...]) -> Tensor:
        """The heads rotated; may overwrite them."""
        ...

    def attended(
        self, queries_ZQD: Tensor, keys_ZTD: Tensor, values_ZTD: Tensor, unseen_Z1T: Tensor, scale: float
    ) -> Tensor:
        """[Z, Q, D]: what the queries see, with -inf added where they may not look."""
        ...


class CpuDecodeOps:
    """As of `DecodeOps`. What is turned together stands side by side: a rotation is one product of complex numbers."""

    def __init__(self, cos_TD: Tensor, sin_TD: Tensor, *, heads: int, still: int, eps: float) -> None:
        self.half, self.eps = cos_TD.shape[1] // 2, eps
        turn_TKd = torch.complex(cos_TD, sin_TD)[:, None, : self.half].repeat(1, heads, 1)
        turn_TKd[:, heads - still :] = 1
        self.turn_TKd = turn_TKd

    def norm(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """As of `DecodeOps`: x sqrt(n) w / sqrt(|x|^2 + n eps)."""
        size = weight.shape[-1]
        scaled, root = weight * size**0.5, weight.new_tensor((size * self.eps) ** 0.5)
        return lambda x: (x * scaled).div_(vector_norm(x, 2, -1, True).hypot_(root))

    def in_order(self, x: Tensor, axis: int) -> Tensor:
        """As of `DecodeOps`."""
        order = torch.arange(x.shape[axis]).view(-1, 2, self.half).mT.flatten()
        return x.index_select(axis, order)

    def turns(self, place_S: Tensor) -> tuple[Tensor, ...]:
        """As of `DecodeOps`."""
        return (self.turn_TKd.index_select(0, place_S),)

    def turned(self, heads_SKD: Tensor, turns: tuple[Tensor, ...]) -> Tensor:
        """As of `DecodeOps`."""
        torch.view_as_complex(heads_SKD.unflatten(-1, (-1, 2))).mul_(*turns)
        return heads_SKD

    def attended(
        self, queries_ZQD: Tensor, keys_ZTD: Tensor, values_ZTD: Tensor, unseen_Z1T: Tensor, scale: float
    ) -> Tensor:
        """As of `DecodeOps`."""
        scores_ZQT = torch.baddbmm(unseen_Z1T, queries_ZQD, keys_ZTD.mT, alpha=scale)
        return torch.bmm(softmax(scores_ZQT, -1), values_ZTD)


class TorchDecodeOps:
    """As of `DecodeOps`."""

    def __init__(self, cos_TD: Tensor, sin_TD: Tensor, *, heads: int, still: int, eps: float) -> None:
        self.eps = eps
        tables = (table[:, None].repeat(1, heads, 1) for table in (cos_TD, signed(sin_TD)))
        self.cos_TKD, self.sin_TKD = tables
        self.cos_TKD[:, heads - still :], self.sin_TKD[:, heads - still :] = 1, 0

    def norm(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """As of `DecodeOps`."""
        return lambda x: rms_norm(x, x.shape[-1:], None, self.eps) * weight

    def in_order(self, x: Tensor, axis: int) -> Tensor:
        """As of `DecodeOps`: as it is."""
        return x

    def turns(self, place_S: Tensor) -> tuple[Tensor, ...]:
        """As of `DecodeOps`."""
        return self.cos_TKD.index_select(0, place_S), self.sin_TKD.index_select(0, place_S)

    def turned(self, heads_SKD: Tensor, turns: tuple[Tensor, ...]) -> Tensor:
        """As of `DecodeOps`."""
        return turned(heads_SKD, *turns)

    def attended(
        self, queries_ZQD: Tensor, keys_ZTD: Tensor, values_ZTD: Tensor, unseen_Z1T: Tensor, scale: float
    ) -> Tensor:
        """As of `DecodeOps`."""
        query, key, value, unseen = (x[:, None] for x in (queries_ZQD, keys_ZTD, values_ZTD, unseen_Z1T))
        return scaled_dot_product_attention(query, key, value, attn_mask=unseen, scale=scale)[:, 0]
