"""Products with weights, on a CPU by oneDNN where that is faster than the BLAS that torch takes for float32.

Thin ones, of the few rows of a step of decoding, read weights that are laid out for them (`thin`). Wide ones, of all
tokens of a batch, read the weights as they stand (`wide`); within `wide_products` a model's own linear layers do, in
the forward pass and in the gradients. How much that brings depends on the machine, for the BLAS chooses its kernels by
the maker of the processor: with weights of SmolLM2-135M on 2 cores, 832 rows, 1.06 to 1.1 times on one AMD EPYC with
AVX-512, and on a later one 2.1 times (206 GFLOP/s by MKL, 440 to 490 by oneDNN). Elsewhere, and in double precision,
torch's own are called; wide ones in bfloat16 torch gives to oneDNN itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from rlgkd.ops._gradient import wants_gradient


class Product(Protocol):
    """[S, in] -> [S, out]."""

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """The product, and what is to be added to it [S, out]."""
        ...


WIDE = 2**22
"""Multiplications of a product from which on oneDNN pays, once it has prepared itself for the number of rows: that
takes up to half a millisecond."""
COPIED = 4
"""How many times as many there are to be in the gradient of a weight, for which one of the two is copied first."""
LAID_OUT = 2**17
"""Numbers of a weight from which on `thin` lays it out: a smaller one is read from the caches, whatever its order."""


def has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN takes a product with this weight: on a CPU, where torch has it, in a precision that it knows."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    half = weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return half or weight.dtype == torch.float32


def prepacked_linear(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int | None) -> Product:
    """The product of some rows with weights [out, in] that stand below each other, plus biases.

    With oneDNN, and if the number of rows is told, the weights are copied into the order in which it reads them, made
    for so many rows: the products of decoding then take a half to a fifth of the time. Else they stay where they are.
    """
    weights, biases = zip(*map(autocast_weights, weights, biases), strict=True)
    product, dtype = _prepacked_linear(weights, biases, rows), weights[0].dtype
    if not torch.is_autocast_enabled(weights[0].device.type):
        return product

    def mixed(x: Tensor, plus: Tensor | None = None) -> Tensor:
        made = product(x.to(dtype))
        return made if plus is None else plus + made

    return mixed


def autocast_weights(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As autocast gives them to a product: it would cast them for each anew, but for leaves that a gradient goes to."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
        return weight, bias
    dtype = torch.get_autocast_dtype(device)
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _prepacked_linear(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int | None) -> Product:
    if rows is None or not has_onednn(weights[0]):

        def apart(x: Tensor, plus: Tensor | None = None) -> Tensor:
            made = [linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
            whole = made[0] if len(made) == 1 else torch.cat(made, dim=-1)
            return whole if plus is None else plus + whole

        return apart
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    some = [bias for bias in biases if bias is not None]
    if some and len(some) < len(biases):
        some = [weight.new_zeros(len(w)) if bias is None else bias for w, bias in zip(weights, biases, strict=True)]
    bias = torch.cat(some) if some else None
    if weight.numel() < LAID_OUT:

        def small(x: Tensor, plus: Tensor | None = None) -> Tensor:
            return linear(x, weight, bias) if plus is None else _plus(plus, bias).addmm(x, weight.T)

        return small
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def large(x: Tensor, plus: Tensor | None = None) -> Tensor:
        return _onednn(x, laid_out, bias) if plus is None else _onednn(x, laid_out, None, _plus(plus, bias))

    return large


def _plus(plus: Tensor, bias: Tensor | None) -> Tensor:
    return plus if bias is None else plus + bias


def wide(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., in] -> [..., out], as torch.nn.functional.linear with a weight [out, in], and its gradients."""
    if not _pays(x, weight):
        return linear(x, weight, bias)
    if wants_gradient(x, weight, bias):
        return cast(Tensor, cast(Any, _Wide).apply(x, weight, bias))
    return _onednn(x, weight, bias)


def linear_without_grad(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`wide`, where no gradient is formed."""
    return _onednn(x, weight, bias) if _pays(x, weight) else linear(x, weight, bias)


def weight_gradients(upstreams: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """The gradients [out, in] of the weights of products with x [N, in], from those of the products [N, out]."""
    return [_of_weight(upstream, x) for upstream in upstreams]


def add_product(total: Tensor, upstream: Tensor, x: Tensor) -> None:
    """Add to `total` [out, in], in place, `of_weights` of one product, which may be held beside it: give parts."""
    if not upstream.dtype == x.dtype == total.dtype:
        total += upstream.T @ x.to(upstream.dtype)
    elif _pays_of_weight(upstream, x):
        total += _of_weight(upstream, x)
    else:
        total.addmm_(upstream.T, x)


def _of_weight(upstream: Tensor, x: Tensor) -> Tensor:
    """oneDNN copies one of the two: the smaller, its product counted too, or that which is to be copied in any case."""
    if not _pays_of_weight(upstream, x):
        return upstream.T @ x
    (rows, out), size = upstream.shape, x.shape[1]
    if rows * out <= rows * size + out * size or not upstream.is_contiguous():
        return _onednn(upstream.T, x.contiguous().T, None)
    return _onednn(x.T, upstream.T, None).T.contiguous()


def wide_products() -> AbstractContextManager[object]:
    """Within it linear layers, those of any model, multiply by `wide`."""
    return _WideProducts()


def _pays(x: Tensor, weight: Tensor, least: int = 1) -> bool:
    if not x.dtype == weight.dtype == torch.float32 or torch.is_autocast_enabled(weight.device.type):
        return False
    return has_onednn(weight) and x.numel() * weight.shape[0] >= least * WIDE


def _pays_of_weight(upstream: Tensor, x: Tensor) -> bool:
    return _pays(upstream, x.T, COPIED)


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
        of_weight = weight_gradients([upstream], x.reshape(-1, x.shape[-1]))[0] if ctx.needs_input_grad[1] else None
        of_bias = upstream.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None = None) -> Tensor:
    if plus is not None:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add"))
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
