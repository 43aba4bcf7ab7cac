"""Fused RMSNorm, rotary embedding, SwiGLU and LoRA with hand-written backward passes.

Left to autograd, each would keep several tensors of the size of its input. These keep their inputs and recompute the
rest: the normalised input, the activation of the gate, and what an adapter makes of either. Each takes the plain path
where no gradient is formed.

Dimensions: N tokens, K heads, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from rlgkd.lm._autograd import apply_function
from rlgkd.lm.linear import linear_without_grad, onednn_linear, weight_gradients
from rlgkd.lm.lora import base_linear, low_rank
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


class LinearWeights(NamedTuple):
    """A linear layer: x W^T + b, plus x A^T B^T of its LoRA adapters."""

    weight: Tensor
    """W, [out, in]."""
    bias: Tensor | None
    a: Tensor | None
    """A, [rank, in]; None without adapters."""
    b: Tensor | None
    """B, [out, rank], with the adapters' scale in it."""

    @staticmethod
    def of(part: nn.Module) -> LinearWeights:
        """Those of a layer of torch's, or of peft's around one."""
        base = base_linear(part)
        return LinearWeights(base.weight, base.bias, *(low_rank(part) or (None, None)))

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out], for callers that form no gradient through it."""
        y = linear_without_grad(x, self.weight, self.bias)
        if self.a is not None and self.b is not None:
            y += linear_without_grad(linear_without_grad(x, self.a), self.b)
        return y

    def input_gradient(self, upstream: Tensor) -> Tensor:
        """[N, in] from the gradient [N, out] of the output."""
        x_grad = linear_without_grad(upstream, self.weight.T)
        if self.a is not None and self.b is not None:
            x_grad += linear_without_grad(linear_without_grad(upstream, self.b.T), self.a.T)
        return x_grad

    def gradients(self, upstream: Tensor, x: Tensor | None, needed: Sequence[bool]) -> list[Tensor | None]:
        """Those of W, b, A and B, as far as they are `needed`; x [N, in] if one of W, A and B is."""
        found: list[Tensor | None] = [None, upstream.sum(0) if needed[1] else None, None, None]
        if needed[0] and x is not None:
            (found[0],) = weight_gradients([upstream], x)
        if (needed[2] or needed[3]) and x is not None and self.a is not None and self.b is not None:
            (found[2],) = weight_gradients([linear_without_grad(upstream, self.b.T)], x)
            (found[3],) = weight_gradients([upstream], linear_without_grad(x, self.a))
        return found


TENSORS = len(LinearWeights._fields)


def linear(x: Tensor, part: nn.Module) -> Tensor:
    """[N, in] -> [N, out]: a linear layer with its adapters, differentiable; keeps its input alone."""
    weights = LinearWeights.of(part)
    y = onednn_linear(x, weights.weight, weights.bias)
    if weights.a is not None and weights.b is not None:
        # Added in place: the backward pass of a linear layer does not need its output.
        y = y.add_(onednn_linear(onednn_linear(x, weights.a), weights.b))
    return y


def rms_norm_linears(x: Tensor, norm: Tensor, sqrt_eps: Tensor, *linears: nn.Module) -> tuple[Tensor, ...]:
    """The outputs of linear layers that share the input `rms_norm(x)`; `norm` is the norm's weight."""
    layers = [LinearWeights.of(part) for part in linears]
    tensors = [tensor for layer in layers for tensor in layer]
    if wants_gradient(x, norm, *tensors):
        outputs: tuple[Tensor, ...] = apply_function(_RmsNormLinears, x, norm, sqrt_eps, *tensors)
        return outputs
    y = rms_norm(x, norm, sqrt_eps)
    return tuple(layer(y) for layer in layers)


class _RmsNormLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, sqrt_eps: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        root = _root(x, sqrt_eps)
        ctx.save_for_backward(x, norm, root, *tensors)
        y = _scale(x, norm, root)
        return tuple(layer(y) for layer in _layers(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, root, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        unit = x / root
        layers = _layers(tensors)
        y = unit * norm if any(needed) else None
        grads: list[Tensor | None] = []
        for upstream, layer in zip(upstreams, layers, strict=True):
            grads += layer.gradients(upstream, y, needed[len(grads) : len(grads) + TENSORS])
        del y
        y_grad = layers[0].input_gradient(upstreams[0])
        for upstream, layer in zip(upstreams[1:], layers[1:], strict=True):
            y_grad += layer.input_gradient(upstream)
        return *_rms_norm_gradients(y_grad, unit, root, norm), None, *grads


def _layers(tensors: Sequence[Tensor | None]) -> list[LinearWeights]:
    """Linear layers from the tensors of all, one after another."""
    return [LinearWeights(*tensors[i : i + TENSORS]) for i in range(0, len(tensors), TENSORS)]  # type: ignore[arg-type]


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


def swiglu_down(gate: Tensor, up: Tensor, down: nn.Module) -> Tensor:
    """W (silu(gate) * up) + b (Shazeer 2020, arXiv 2002.05202); overwrites `gate` where no gradient is formed."""
    layer = LinearWeights.of(down)
    if wants_gradient(gate, up, *layer):
        output: Tensor = apply_function(_SwigluDown, gate, up, *layer)
        return output
    return layer(silu(gate, inplace=True).mul_(up))


class _SwigluDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, *tensors)
        (layer,) = _layers(tensors)
        return layer(silu(gate).mul_(up))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *tensors = ctx.saved_tensors
        (layer,) = _layers(tensors)
        needed = ctx.needs_input_grad[2:]
        product_grad = layer.input_gradient(upstream)
        activation = silu(gate)
        grads = layer.gradients(upstream, activation * up if any(needed) else None, needed)
        up_grad = activation.mul_(product_grad)
        gate_grad = torch.ops.aten.silu_backward(product_grad.mul_(up), gate)
        return gate_grad, up_grad, *grads
