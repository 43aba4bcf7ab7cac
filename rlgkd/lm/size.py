"""How large a model is, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rlgkd.errors import RlgkdError
from rlgkd.lm.loading import load_config
from rlgkd.lm.lora import unwrapped


@dataclass(frozen=True)
class ModelSize:
    """What memory and time of training depend on."""

    parameters: int
    layers: int
    hidden: int


def model_size(model: str | Path | nn.Module | Any, layers: int | None = None) -> ModelSize | None:
    """The size of a loaded model, or of one by its name, of which no weights are read; None if it is not known.

    Args:
        model: As `rlgkd.lm.loading.load` takes it.
        layers: How many of its layers are kept; None is all.

    Examples:
        >>> model_size("embedded:grounded-student").layers, model_size("no/such-model")
        (2, None)
    """
    try:
        module, config = _module_of(model, layers)
        own = config.get_text_config()
        depth = int(getattr(own, "num_hidden_layers", 0) or getattr(own, "num_layers", 0))
        width = int(getattr(own, "hidden_size", 0) or getattr(own, "d_model", 0))
    except (RlgkdError, AttributeError, KeyError, TypeError, ValueError):  # what opens the model will say why
        return None
    return ModelSize(sum(p.numel() for p in module.parameters()), min(depth, layers or depth), width)


def _module_of(model: str | Path | nn.Module | Any, layers: int | None) -> tuple[nn.Module, Any]:
    """The module, on the meta device if it is not loaded, and its configuration."""
    if not isinstance(model, str | Path):
        module = unwrapped(model)
        return module, module.config
    config = load_config(model)
    if layers is not None:
        config.get_text_config().num_hidden_layers = layers
        if getattr(config.get_text_config(), "layer_types", None):
            config.get_text_config().layer_types = config.get_text_config().layer_types[:layers]
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        opener: Any = auto.from_config
        return opener(config), config
