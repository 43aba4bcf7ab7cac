"""What a layer is made of beside attention, each part one pass with a gradient that is written down.

Left to autograd, each would keep several tensors of the size of its input. These keep their inputs, and compute the
rest anew: what a norm made of its input, what a gate let through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from rlgkd.lm.linear import linear_without_grad, weight_gradients
from rlgkd.ops._gradient import wants_gradient


def normed(x: Tensor, weight: Tensor, root_of_eps: Tensor) -> Tensor:
    """y = x / r * w, r = sqrt(mean(x^2) + eps), over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    if wants_gradient(x, weight):
        return cast(Tensor, cast(Any, _Normed).apply(x, weight, root_of_eps))
    return _scaled(x, weight, _root(x, root_of_eps))


def _root(x: Tensor, root_of_eps: Tensor) -> Tensor:
    """[..., 1]: r."""
    size: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
    return size.hypot_(root_of_eps)


def _scaled(x: Tensor, weight: Tensor, root: Tensor) -> Tensor:
    return (x * weight).div_(root)


def _slopes_of_norm(upstream: Tensor, unit: Tensor, root: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of x and of the weight, from x / r; overwrites `upstream`, which is that of y."""
    of_weight = (upstream * unit).flatten(0, -2).sum(0)
    slope = upstream.mul_(weight)
    along = (slope * unit).mean(-1, keepdim=True)
    return slope.addcmul_(unit, along, value=-1.0).div_(root), of_weight


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, root_of_eps: Tensor) -> Tensor:
        root = _root(x, root_of_eps)
        ctx.save_for_backward(x, weight, root)
        return _scaled(x, weight, root)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, root = ctx.saved_tensors
        return *_slopes_of_norm(upstream.clone(), x / root, root, weight), None


def normed_products(x: Tensor, norm: Tensor, root_of_eps: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """The products of linear layers with `normed` x."""
    weights, biases = [part.weight for part in linears], [part.bias for part in linears]
    if wants_gradient(x, norm, *weights, *biases):
        return cast("tuple[Tensor, ...]", cast(Any, _NormedProducts).apply(x, norm, root_of_eps, *weights, *biases))
    y = normed(x, norm, root_of_eps)
    return tuple(linear_without_grad(y, weight, bias) for weight, bias in zip(weights, biases, strict=True))


class _NormedProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, root_of_eps: Tensor, *linears: Tensor) -> tuple[Tensor, ...]:
        ctx.size = len(linears) // 2
        weights, biases = linears[: ctx.size], linears[ctx.size :]
        root = _root(x, root_of_eps)
        ctx.save_for_backward(x, norm, root, *weights)
        y = _scaled(x, norm, root)
        return tuple(linear_without_grad(y, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, root, *weights = ctx.saved_tensors
        unit = x / root
        gradients_of_weights = _where(
            ctx.needs_input_grad[3 : 3 + ctx.size], lambda: weight_gradients(upstreams, unit * norm)
        )
        of_biases = _where(ctx.needs_input_grad[3 + ctx.size :], lambda: [slope.sum(0) for slope in upstreams])
        slope = linear_without_grad(upstreams[0], weights[0].T)
        for upstream, weight in zip(upstreams[1:], weights[1:], strict=True):
            slope += linear_without_grad(upstream, weight.T)
        return *_slopes_of_norm(slope, unit, root, norm), None, *gradients_of_weights, *of_biases


def _where(wanted: Sequence[bool], make: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor | None]:
    made = make() if any(wanted) else [None] * len(wanted)
    return [one if w else None for one, w in zip(made, wanted, strict=True)]


def turned(x_NKD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    """[N, K, D]: rotated by the position (Su et al. 2021, arXiv 2104.09864); the sine is `signed`.

    cos and sin are those of all heads, or [N, K, D] of each.
    """
    if wants_gradient(x_NKD):
        return cast(Tensor, cast(Any, _Turned).apply(x_NKD, cos_N1D, sin_N1D))
    return _turned(x_NKD, cos_N1D, sin_N1D)


def signed(sin_D: Tensor) -> Tensor:
    """[..., D]: the sine by which the other half of a head comes in: negative for the first half."""
    return torch.cat([-sin_D[..., : sin_D.shape[-1] // 2], sin_D[..., sin_D.shape[-1] // 2 :]], dim=-1)


def _turned(x_NKD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
    return (x_NKD * cos_N1D).addcmul_(x_NKD.roll(x_NKD.shape[-1] // 2, -1), sin_N1D)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NKD: Tensor, cos_N1D: Tensor, sin_N1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_N1D, sin_N1D)
        return _turned(x_NKD, cos_N1D, sin_N1D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos_N1D, sin_N1D = ctx.saved_tensors
        back = (upstream * sin_N1D).roll(upstream.shape[-1] // 2, -1)
        return back.addcmul_(upstream, cos_N1D), None, None


def gated_product(gate: Tensor, up: Tensor, linear: nn.Linear) -> Tensor:
    """W (silu(gate) * up) (Shazeer 2020, arXiv 2002.05202); may overwrite `gate` where no gradient is formed."""
    if wants_gradient(gate, up, linear.weight, linear.bias):
        return cast(Tensor, cast(Any, _GatedProduct).apply(gate, up, linear.weight, linear.bias))
    return linear_without_grad(silu(gate, inplace=True).mul_(up), linear.weight, linear.bias)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear_without_grad(silu(gate).mul_(up), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        slope, passed = linear_without_grad(upstream, weight.T), silu(gate)
        of_weight = _where(ctx.needs_input_grad[2:3], lambda: weight_gradients([upstream], passed * up))[0]
        of_bias = upstream.sum(0) if ctx.needs_input_grad[3] else None
        of_up = passed.mul_(slope)
        return torch.ops.aten.silu_backward(slope.mul_(up), gate), of_up, of_weight, of_bias
