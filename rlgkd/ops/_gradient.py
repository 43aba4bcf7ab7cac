"""A value whose gradient is known in closed form.

Autograd would keep every [..., V] intermediate of a divergence for its backward pass. All of them have a short
closed form instead, so exactly one [..., V] tensor is kept, in the dtype of the logits. (On 2 CPU cores, float32,
[256, 32000], forward and backward: see tests/ops/test_divergence.py for the comparison with autograd.)
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def wants_gradient(logits: Tensor) -> bool:
    """Return whether a gradient with respect to `logits` will be asked for."""
    return logits.requires_grad and torch.is_grad_enabled()


def with_gradient(logits: Tensor, value: Tensor, gradient_V: Tensor) -> Tensor:
    """Return `value` [...], which autograd then takes to have d value / d logits = `gradient_V` [..., V].

    Both must have been computed from detached tensors. Differentiable once: to autograd the gradient is a constant.
    """
    result = _WithGradient.apply(logits, value, gradient_V.to(logits.dtype))  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient_V: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_V)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient_V,) = ctx.saved_tensors
        return upstream.unsqueeze(-1).to(gradient_V.dtype) * gradient_V, None, None
