"""The operations of a decode step apart from linear layers: norm, rotary embedding and attention of one token a row.

`CpuDecodeOps` is for float32 and float64 on a CPU, where each call of torch takes longer than its arithmetic on a small
model, and torch's own kernels do not help: its attention is made for blocks of queries and takes up to twice as long
for one, and its RMSNorm is ten calls. `TorchDecodeOps` uses those kernels: they sum half precision in float32, and on
accelerators or under torch.compile each is one kernel.

Dimensions: S slots, G key heads, Z = S G, Q query heads of a key head, K heads of a token in all (queries, keys,
values), T columns of the cache or positions of a table, D numbers of a head, d = D / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm, scaled_dot_product_attention, softmax

from rlgkd.lm.fast.autograd_ops import apply_rotary, signed_sin


class DecodeOps(Protocol):
    """Norm, rotary embedding and attention of one token a row."""

    def __init__(self, cos_TD: Tensor, sin_TD: Tensor, *, heads: int, value_heads: int, eps: float) -> None:
        """Make tables from the cosine and sine of each position.

        Args:
            cos_TD: Cosine of each position.
            sin_TD: And sine.
            heads: K.
            value_heads: How many of them, the last, are values and are not rotated.
            eps: That of the norms.
        """
        ...

    def norm(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Return RMSNorm with this weight (see rlgkd.lm.fast.autograd_ops.rms_norm)."""
        ...

    def to_rotary_layout(self, x: Tensor, axis: int) -> Tensor:
        """Reorder an axis of whole heads as `apply_rotary` expects the numbers within a head."""
        ...

    def rotary_tables(self, position_S: Tensor) -> tuple[Tensor, ...]:
        """The rotations of these positions."""
        ...

    def apply_rotary(self, heads_SKD: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """Rotate queries and keys; may overwrite them."""
        ...

    def attention(
        self, queries_ZQD: Tensor, keys_ZTD: Tensor, values_ZTD: Tensor, mask_Z1T: Tensor, scale: float
    ) -> Tensor:
        """[Z, Q, D]: attention, with the mask added to the scores."""
        ...


class CpuDecodeOps:
    """Few calls, for float32 on a CPU. Rotary pairs are adjacent, so that a rotation is one complex multiply."""

    def __init__(self, cos_TD: Tensor, sin_TD: Tensor, *, heads: int, value_heads: int, eps: float) -> None:
        self.half = cos_TD.shape[1] // 2
        self.eps = eps
        rotation_TKd = torch.complex(cos_TD, sin_TD)[:, None, : self.half].repeat(1, heads, 1)
        # Values are multiplied by 1: one call over all heads takes less time than to leave some out.
        rotation_TKd[:, heads - value_heads :] = 1
        self.rotation_TKd = rotation_TKd

    def norm(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Return x -> x sqrt(n) w / sqrt(|x|^2 + n eps): the mean's 1/n goes into weight and eps."""
        size = weight.shape[-1]
        scaled_weight = weight * size**0.5
        scaled_root = weight.new_tensor((size * self.eps) ** 0.5)
        return lambda x: (x * scaled_weight).div_(vector_norm(x, 2, -1, True).hypot_(scaled_root))

    def to_rotary_layout(self, x: Tensor, axis: int) -> Tensor:
        """Put the two numbers of each rotary pair side by side."""
        order = torch.arange(x.shape[axis]).view(-1, 2, self.half).mT.flatten()
        return x.index_select(axis, order)

    def rotary_tables(self, position_S: Tensor) -> tuple[Tensor, ...]:
        """One complex table [S, K, d]."""
        return (self.rotation_TKd.index_select(0, position_S),)

    def apply_rotary(self, heads_SKD: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """Rotate in place."""
        torch.view_as_complex(heads_SKD.unflatten(-1, (-1, 2))).mul_(*tables)
        return heads_SKD

    def attention(
        self, queries_ZQD: Tensor, keys_ZTD: Tensor, values_ZTD: Tensor, mask_Z1T: Tensor, scale: float
    ) -> Tensor:
        """Attention by two batched products."""
        scores_ZQT = torch.baddbmm(mask_Z1T, queries_ZQD, keys_ZTD.mT, alpha=scale)
        return torch.bmm(softmax(scores_ZQT, -1), values_ZTD)


class TorchDecodeOps:
    """torch's own kernels, for half precision, accelerators and torch.compile."""

    def __init__(self, cos_TD: Tensor, sin_TD: Tensor, *, heads: int, value_heads: int, eps: float) -> None:
        self.eps = eps
        self.cos_TKD, self.sin_TKD = (table[:, None].repeat(1, heads, 1) for table in (cos_TD, signed_sin(sin_TD)))
        self.cos_TKD[:, heads - value_heads :] = 1
        self.sin_TKD[:, heads - value_heads :] = 0

    def norm(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Return torch's RMSNorm with this weight."""
        return lambda x: rms_norm(x, x.shape[-1:], None, self.eps) * weight

    def to_rotary_layout(self, x: Tensor, axis: int) -> Tensor:
        """Return x: rotary pairs stay half a head apart."""
        return x

    def rotary_tables(self, position_S: Tensor) -> tuple[Tensor, ...]:
        """Cosine and signed sine, both [S, K, D]."""
        return self.cos_TKD.index_select(0, position_S), self.sin_TKD.index_select(0, position_S)

    def apply_rotary(self, heads_SKD: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """Rotate into a new tensor."""
        return apply_rotary(heads_SKD, *tables)

    def attention(
        self, queries_ZQD: Tensor, keys_ZTD: Tensor, values_ZTD: Tensor, mask_Z1T: Tensor, scale: float
    ) -> Tensor:
        """Attention by torch's kernel."""
        query, key, value, mask = (x[:, None] for x in (queries_ZQD, keys_ZTD, values_ZTD, mask_Z1T))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)[:, 0]
