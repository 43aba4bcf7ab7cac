"""Products with weights, on a CPU by oneDNN where that is faster than the BLAS that torch takes for float32.

Thin ones, of the few rows of a step of decoding, read weights that are laid out for them (`thin`). Wide ones, of all
tokens of a batch, read the weights as they stand (`wide`); within `wide_products` a model's own linear layers do, in
the forward pass and in the gradient of their input. Measured on 2 cores with weights of SmolLM2-135M: the layers' are
6 to 10% faster, a head of 49,152 tokens 1.3 to 1.6 times. Elsewhere, and in other precisions, torch's own are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

Product = Callable[[Tensor], Tensor]
"""[S, in] -> [S, out]."""
WIDE = 192
"""Outputs and inputs of a weight from which on `wide` pays: oneDNN prepares a millisecond for each number of rows."""
LAID_OUT = 2**17
"""Numbers of a weight from which on `thin` lays it out: a smaller one is read from the caches, whatever its order."""


def has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN takes a product with this weight: in float32 alone, on a CPU, where torch has it."""
    there = torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and there


def thin(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int | None) -> Product:
    """The product of some rows with weights [out, in] that stand below each other, plus biases.

    With oneDNN, and if the number of rows is told, the weights are copied into the order in which it reads them, made
    for so many rows: the products of decoding then take a half to a fifth of the time. Else they stay where they are.
    """
    if rows is None or not has_onednn(weights[0]):

        def apart(x: Tensor) -> Tensor:
            made = [linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
            return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

        return apart
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    some = [bias for bias in biases if bias is not None]
    if some and len(some) < len(biases):
        some = [weight.new_zeros(len(w)) if bias is None else bias for w, bias in zip(weights, biases, strict=True)]
    bias = torch.cat(some) if some else None
    if weight.numel() < LAID_OUT:
        return lambda x: linear(x, weight, bias)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: _onednn(x, laid_out, bias)


def wide(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., in] -> [..., out], as torch.nn.functional.linear with a weight [out, in], and its gradients."""
    if not (_pays(weight) and x.dtype == weight.dtype):
        return linear(x, weight, bias)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return cast(Tensor, cast(Any, _Wide).apply(x, weight, bias))
    return _onednn(x, weight, bias)


def wide_products(head: Tensor) -> AbstractContextManager[object]:
    """Within it linear layers, those of any model, multiply by `wide`, if it pays for a head of this weight [V, H]."""
    return _WideProducts() if _pays(head) else nullcontext()


def _pays(weight: Tensor) -> bool:
    return has_onednn(weight) and min(weight.shape) >= WIDE


class _WideProducts(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (wide if func is linear else func)(*args, **(kwargs or {}))


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = _onednn(upstream, weight.T, None) if ctx.needs_input_grad[0] else None
        upstream = upstream.reshape(-1, upstream.shape[-1])
        # oneDNN would copy both first, which takes what it gains.
        of_weight = upstream.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        of_bias = upstream.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
