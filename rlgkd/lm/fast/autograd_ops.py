"""Fused RMSNorm, rotary embedding and SwiGLU with hand-written backward passes.

Left to autograd, each would keep several tensors of the size of its input. These keep their inputs and recompute the
rest: the normalised input, and the activation of the gate. Each takes the plain path where no gradient is formed.

Dimensions: N tokens, K heads, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from rlgkd.lm._autograd import apply_function
from rlgkd.lm.linear import linear_without_grad, weight_gradients
from rlgkd.ops._gradient import wants_gradient


def rms_norm(x: Tensor, weight: Tensor, sqrt_eps: Tensor) -> Tensor:
    """y = x / r * w, r = sqrt(mean(x^2) + eps), over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    if wants_gradient(x, weight):
        y: Tensor = apply_function(_RmsNorm, x, weight, sqrt_eps)
        return y
    return _scale(x, weight, _root(x, sqrt_eps))


def _root(x: Tensor, sqrt_eps: Tensor) -> Tensor:
    """[..., 1]: r."""
    root: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
    return root.hypot_(sqrt_eps)  # adds eps under the root in one call


def _scale(x: Tensor, weight: Tensor, root: Tensor) -> Tensor:
    return (x * weight).div_(root)


def _rms_norm_gradients(upstream: Tensor, unit: Tensor, root: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight, from `unit` = x / r and that of y, which is overwritten."""
    weight_grad = (upstream * unit).flatten(0, -2).sum(0)
    unit_grad = upstream.mul_(weight)
    projection = (unit_grad * unit).mean(-1, keepdim=True)
    return unit_grad.addcmul_(unit, projection, value=-1.0).div_(root), weight_grad


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sqrt_eps: Tensor) -> Tensor:
        root = _root(x, sqrt_eps)
        ctx.save_for_backward(x, weight, root)
        return _scale(x, weight, root)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, root = ctx.saved_tensors
        # A copy to overwrite: autograd may use the upstream gradient elsewhere.
        return *_rms_norm_gradients(upstream.clone(), x / root, root, weight), None


def rms_norm_linears(x: Tensor, norm: Tensor, sqrt_eps: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """The outputs of linear layers that share the input `rms_norm(x)`; `norm` is the norm's weight."""
    weights = [part.weight for part in linears]
    biases = [part.bias for part in linears]
    if wants_gradient(x, norm, *weights, *biases):
        outputs: tuple[Tensor, ...] = apply_function(_RmsNormLinears, x, norm, sqrt_eps, *weights, *biases)
        return outputs
    y = rms_norm(x, norm, sqrt_eps)
    return tuple(linear_without_grad(y, weight, bias) for weight, bias in zip(weights, biases, strict=True))


class _RmsNormLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, sqrt_eps: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.linears = len(parameters) // 2
        weights = parameters[: ctx.linears]
        biases = parameters[ctx.linears :]
        root = _root(x, sqrt_eps)
        ctx.save_for_backward(x, norm, root, *weights)
        y = _scale(x, norm, root)
        return tuple(linear_without_grad(y, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, root, *weights = ctx.saved_tensors
        needs_weights = ctx.needs_input_grad[3 : 3 + ctx.linears]
        needs_biases = ctx.needs_input_grad[3 + ctx.linears :]
        unit = x / root
        weight_grads = _needed(needs_weights, lambda: weight_gradients(upstreams, unit * norm))
        bias_grads = _needed(needs_biases, lambda: [upstream.sum(0) for upstream in upstreams])
        y_grad = linear_without_grad(upstreams[0], weights[0].T)
        for upstream, weight in zip(upstreams[1:], weights[1:], strict=True):
            y_grad += linear_without_grad(upstream, weight.T)
        return *_rms_norm_gradients(y_grad, unit, root, norm), None, *weight_grads, *bias_grads


def _needed(needed: Sequence[bool], compute: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor | None]:
    """The computed gradients, None where one is not needed; nothing is computed if none is."""
    gradients = compute() if any(needed) else [None] * len(needed)
    return [gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=True)]


def apply_rotary(x_NKD: Tensor, cos_N1D: Tensor, signed_sin_N1D: Tensor) -> Tensor:
    """[N, K, D]: heads rotated by their positions (Su et al. 2021, arXiv 2104.09864).

    Cosine and `signed_sin` are [N, 1, D], or [N, K, D] with a copy for each head.
    """
    if wants_gradient(x_NKD):
        rotated_NKD: Tensor = apply_function(_Rotary, x_NKD, cos_N1D, signed_sin_N1D)
        return rotated_NKD
    return _rotate(x_NKD, cos_N1D, signed_sin_N1D)


def signed_sin(sin_D: Tensor) -> Tensor:
    """[..., D]: the sine by which the other half of a head is added: negative in the first half."""
    half = sin_D.shape[-1] // 2
    return torch.cat([-sin_D[..., :half], sin_D[..., half:]], dim=-1)


def _rotate(x_NKD: Tensor, cos_N1D: Tensor, signed_sin_N1D: Tensor) -> Tensor:
    return (x_NKD * cos_N1D).addcmul_(x_NKD.roll(x_NKD.shape[-1] // 2, -1), signed_sin_N1D)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NKD: Tensor, cos_N1D: Tensor, signed_sin_N1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_N1D, signed_sin_N1D)
        return _rotate(x_NKD, cos_N1D, signed_sin_N1D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos_N1D, signed_sin_N1D = ctx.saved_tensors
        x_grad = (upstream * signed_sin_N1D).roll(upstream.shape[-1] // 2, -1)
        return x_grad.addcmul_(upstream, cos_N1D), None, None


def swiglu_down(gate: Tensor, up: Tensor, down: nn.Linear) -> Tensor:
    """W (silu(gate) * up) + b (Shazeer 2020, arXiv 2002.05202); overwrites `gate` where no gradient is formed."""
    if wants_gradient(gate, up, down.weight, down.bias):
        output: Tensor = apply_function(_SwigluDown, gate, up, down.weight, down.bias)
        return output
    return linear_without_grad(silu(gate, inplace=True).mul_(up), down.weight, down.bias)


class _SwigluDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear_without_grad(silu(gate).mul_(up), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        product_grad = linear_without_grad(upstream, weight.T)
        activation = silu(gate)
        (weight_grad,) = _needed(ctx.needs_input_grad[2:3], lambda: weight_gradients([upstream], activation * up))
        bias_grad = upstream.sum(0) if ctx.needs_input_grad[3] else None
        up_grad = activation.mul_(product_grad)
        gate_grad = torch.ops.aten.silu_backward(product_grad.mul_(up), gate)
        return gate_grad, up_grad, weight_grad, bias_grad
