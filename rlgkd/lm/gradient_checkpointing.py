"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): layers keep their input and recompute the rest.

An update then does a third more work, and needs the memory of one layer in place of all. transformers' own switch works
in `train()` mode alone (https://github.com/huggingface/trl/issues/1066), which would turn dropout on; so the layers'
forward methods are wrapped here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlgkd.errors import ModelError
from rlgkd.lm.layers import marked_layers
from rlgkd.lm.linear import onednn_linears


def enable_gradient_checkpointing(module: PreTrainedModel) -> None:
    """Checkpoint each layer of the model, in place; without gradients nothing changes.

    Raises: ModelError for an architecture whose layers transformers does not mark as fit for it.
    """
    layers: Any = marked_layers(module)
    if not layers:
        raise ModelError("model", module.config.model_type, "its layers cannot; leave gradient_checkpointing out")
    for layer in layers:
        layer.gradient_checkpointing = True  # for rlgkd.lm.fast; in eval() mode transformers does nothing with it
        layer.forward = partial(_checkpointed_forward, layer.forward, next(layer.parameters()).device)


def _checkpointed_forward(forward: Callable[..., Any], device: torch.device, *inputs: Any, **named_inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named_inputs)
    # The second run is outside of the caller's `onednn_linears`, but its products must equal the first's.
    contexts = (onednn_linears(device), onednn_linears(device))
    # No random state is kept, for nothing in a layer is random: dropout is off.
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: contexts,
        **named_inputs,
    )
