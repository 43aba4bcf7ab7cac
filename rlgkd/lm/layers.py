"""The transformer layers of a model: which there are, and those that a student cut out of it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlgkd.errors import ModelError, SettingError


def marked_layers(module: PreTrainedModel) -> list[nn.Module]:
    """The layers that transformers marks as parts that run by themselves; none in some architectures."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


def layer_count(module: PreTrainedModel) -> int:
    """How many layers it has. Raises: ModelError for a model without a list of them."""
    return len(_stack(module))


def keep_layers(module: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Keep these layers, in place, renumbered, since the KV cache is indexed by `layer_idx`.

    Raises: ModelError as `layer_count` does; SettingError for layers that it does not have, or twice.
    """
    stack = _stack(module)
    if any(not 0 <= index < len(stack) for index in layers) or len(set(layers)) < len(layers):
        raise SettingError("layers", list(layers), f"choose from 0 to {len(stack) - 1}, each once")
    kept = [stack[index] for index in layers]
    for index, layer in enumerate(kept):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index
    module.base_model.layers = nn.ModuleList(kept)
    module.config.num_hidden_layers = len(kept)
    if getattr(module.config, "layer_types", None):
        module.config.layer_types = [module.config.layer_types[index] for index in layers]
    return module


def _stack(module: PreTrainedModel) -> Sequence[Any]:
    stack: Sequence[Any] | None = getattr(module.base_model, "layers", None)
    if stack is None:
        raise ModelError("layers", module.config.model_type, "only models with a `layers` list can be cut")
    return stack
