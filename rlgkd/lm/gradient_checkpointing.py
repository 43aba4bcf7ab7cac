"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): layers that keep their input and nothing else.

What a layer computed on its way is computed again when its gradient is formed: a third more work, and the memory of one
layer where it was that of all. transformers' own switch works in `train()` mode alone, which would turn dropout on; so
the layers' forward passes are wrapped here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlgkd.errors import ModelError
from rlgkd.lm.linear import wide_products


def enable_gradient_checkpointing(module: PreTrainedModel) -> None:
    """Let each layer of the model compute anew what its gradient needs, in place; without gradients nothing changes.

    Raises: ModelError for an architecture whose layers transformers does not mark as fit for it.
    """
    layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError("model", module.config.model_type, "its layers cannot; leave gradient_checkpointing out")
    for layer in layers:
        layer.gradient_checkpointing = True  # as rlgkd.lm.fast.llama reads it; without train() transformers does not
        layer.forward = partial(_again, layer.forward)


def _again(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    # Nothing in it is random: dropout is off. The second time, its products shall be those of the first.
    contexts = wide_products(), wide_products()
    return checkpoint(
        forward, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts, **named
    )
