"""Linear layers on a CPU by oneDNN, where it is faster than the BLAS that torch takes for float32.

- `prepacked_linear`, for the few rows of a decode step: the weights are copied once into oneDNN's own order.
- `onednn_linear`, for all tokens of a batch, with gradients: the weights stay as they are.
- `onednn_linears`, a context within which the linear layers of any model use `onednn_linear`.

The gain depends on the machine, since MKL chooses its kernels by the maker of the processor
(https://github.com/pytorch/builder/issues/504). With the weights of SmolLM2-135M, 832 rows and 2 cores it is 1.06 to
1.1 times on one AMD EPYC with AVX-512, and 2.1 times on a later one (MKL 206 GFLOP/s, oneDNN 440 to 490). On other
devices and in double precision torch's own linear layer is called. Large matrix products in bfloat16 torch gives to
oneDNN itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from rlgkd.lm._autograd import apply_function
from rlgkd.ops._gradient import wants_gradient

ONEDNN_MIN_MULTIPLICATIONS = 2**22
"""Multiplications from which on oneDNN pays. It builds a primitive for each new number of rows, in up to half a
millisecond, and keeps it for good, with 0.6 MiB of generated code: see `few_sizes`."""
WEIGHT_GRADIENT_FACTOR = 4
"""Factor on `ONEDNN_MIN_MULTIPLICATIONS` for the gradient of a weight, one of whose operands must be copied first."""
PREPACK_MIN_WEIGHTS = 2**17
"""Weights from which on `prepacked_linear` repacks: a smaller matrix is read from the caches, whatever its order."""


def few_sizes(rows: int) -> int:
    """Round a number of rows up to one of 16 sizes between a power of two and the next.

    A process that meets ever new numbers of rows would grow by 0.6 MiB for each, of each product of an update, and what
    stays lies between the large blocks that come and go, which then find no room (rlgkd.scripts.runs.allocator).

    Examples:
        >>> [few_sizes(rows) for rows in (31, 832, 1025, 3328)]
        [31, 832, 1088, 3328]
    """
    return rows + -rows % (1 << max(0, rows.bit_length() - 5))


class LinearFunction(Protocol):
    """A linear layer over fixed weights: [S, in] -> [S, out]."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return x W^T + b, plus `residual` [S, out] if given."""
        ...


def has_onednn(weight: Tensor) -> bool:
    """Return whether oneDNN multiplies by this weight: on a CPU, in float32, or in bfloat16 where the CPU has it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if type(weight) not in (Tensor, nn.Parameter):  # quantised weights are types of their own
        return False
    half = weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return half or weight.dtype == torch.float32


def prepacked_linear(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int | None) -> LinearFunction:
    """Join linear layers that share an input; their outputs stand side by side.

    Args:
        weights: Matrices [out, in].
        biases: One for each weight.
        rows: Rows that the function will be called with. oneDNN's copy of the weights is made for that many, and the
            products of a decode step then take a half to a fifth of the time. None uses the weights where they are.
    """
    cast_pairs = [autocast_weights(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    weights = [weight for weight, _ in cast_pairs]
    function = _prepacked_linear(weights, [bias for _, bias in cast_pairs], rows)
    if not torch.is_autocast_enabled(weights[0].device.type):
        return function
    dtype = weights[0].dtype

    def mixed_linear(x: Tensor, residual: Tensor | None = None) -> Tensor:
        # The sum is formed outside, in the residual's full precision.
        y = function(x.to(dtype))
        return y if residual is None else residual + y

    return mixed_linear


def autocast_weights(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast a layer's weight and bias as autocast would, once for many calls.

    Autocast caches its copies of leaf tensors that require a gradient, and of no others: weights that are frozen,
    sliced, or merged with adapters it would cast again in every call.
    """
    device = weight.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
        return weight, bias
    dtype = torch.get_autocast_dtype(device)
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _prepacked_linear(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int | None) -> LinearFunction:
    if rows is None or not has_onednn(weights[0]):

        def separate_linears(x: Tensor, residual: Tensor | None = None) -> Tensor:
            outputs = [linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
            return y if residual is None else residual + y

        return separate_linears
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    bias = _joined_bias(weights, biases)
    if weight.numel() < PREPACK_MIN_WEIGHTS:

        def small_linear(x: Tensor, residual: Tensor | None = None) -> Tensor:
            return linear(x, weight, bias) if residual is None else _plus_bias(residual, bias).addmm(x, weight.T)

        return small_linear
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def large_linear(x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            return _call_onednn(x, packed, bias)
        return _call_onednn(x, packed, None, _plus_bias(residual, bias))

    return large_linear


def _joined_bias(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """One bias for the joined weights, 0 for a layer without; None if none has any."""
    if all(bias is None for bias in biases):
        return None
    weight = weights[0]
    return torch.cat(
        [weight.new_zeros(len(w)) if bias is None else bias for w, bias in zip(weights, biases, strict=True)]
    )


def _plus_bias(residual: Tensor, bias: Tensor | None) -> Tensor:
    return residual if bias is None else residual + bias


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., in] -> [..., out]: torch.nn.functional.linear, differentiable, by oneDNN where that pays."""
    if not _onednn_pays(x, weight):
        return linear(x, weight, bias)
    if wants_gradient(x, weight, bias):
        output: Tensor = apply_function(_OneDnnLinear, x, weight, bias)
        return output
    return _call_onednn(x, weight, bias)


def linear_without_grad(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`onednn_linear` for callers that form no gradient through it."""
    return _call_onednn(x, weight, bias) if _onednn_pays(x, weight) else linear(x, weight, bias)


def weight_gradients(upstreams: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """The gradients [out, in] of weights that were multiplied with x [N, in], from those of their outputs [N, out]."""
    return [_weight_gradient(upstream, x) for upstream in upstreams]


def add_weight_gradient(total: Tensor, upstream: Tensor, x: Tensor) -> None:
    """Add a weight's gradient to `total` [out, in] in place.

    The gradient may be formed as a second tensor of that size, so give large weights part by part.
    """
    if not upstream.dtype == x.dtype == total.dtype:
        total += upstream.T @ x.to(upstream.dtype)
    elif _onednn_pays_for_gradient(upstream, x):
        total += _weight_gradient(upstream, x)
    else:
        total.addmm_(upstream.T, x)


def _weight_gradient(upstream: Tensor, x: Tensor) -> Tensor:
    if not _onednn_pays_for_gradient(upstream, x):
        return upstream.T @ x
    rows, out = upstream.shape
    size = x.shape[1]
    # oneDNN copies one of the two operands. Let it be the smaller (with the transposed result, where that has to be
    # copied too), or the one that is not contiguous and is copied in any case.
    if rows * out <= rows * size + out * size or not upstream.is_contiguous():
        return _call_onednn(upstream.T, x.contiguous().T, None)
    return _call_onednn(x.T, upstream.T, None).T.contiguous()


def onednn_linears(device: torch.device) -> AbstractContextManager[object]:
    """Return a context within which every linear layer, of any model on a CPU, is an `onednn_linear`."""
    # Elsewhere it would only look at every call.
    return _OneDnnLinears() if device.type == "cpu" else nullcontext()


def _onednn_pays(x: Tensor, weight: Tensor, factor: int = 1) -> bool:
    if not x.dtype == weight.dtype == torch.float32 or torch.is_autocast_enabled(weight.device.type):
        return False
    return has_onednn(weight) and x.numel() * weight.shape[0] >= factor * ONEDNN_MIN_MULTIPLICATIONS


def _onednn_pays_for_gradient(upstream: Tensor, x: Tensor) -> bool:
    return _onednn_pays(upstream, x.T, WEIGHT_GRADIENT_FACTOR)


class _OneDnnLinears(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (onednn_linear if func is linear else func)(*args, **(kwargs or {}))


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _call_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_grad = _call_onednn(upstream, weight.T, None) if ctx.needs_input_grad[0] else None
        upstream = upstream.reshape(-1, upstream.shape[-1])
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = _weight_gradient(upstream, x.reshape(-1, x.shape[-1]))
        bias_grad = upstream.sum(0) if ctx.needs_input_grad[2] else None
        return x_grad, weight_grad, bias_grad


def _call_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """Call the kernel that torch.compile's CPU backend uses for linear layers; torch has no public name for it."""
    if residual is not None:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add"))
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
