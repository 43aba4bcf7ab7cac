"""Decides which models the hand-written Llama code runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlgkd.lm.lora import is_mergeable_linear

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures that differ from Llama by a bias or a norm at most."""
ROPE_TYPES = ("default", "linear", "llama3")
"""Rotary embeddings that depend on the position alone."""


def is_llama_family(module: PreTrainedModel) -> bool:
    """Return whether the configuration is one of the Llama family, without sliding windows."""
    config = module.config
    if config.model_type not in FAMILIES or config._attn_implementation not in ("sdpa", "eager"):
        return False
    plain = not getattr(config, "sliding_window", None) and config.hidden_act == "silu"
    return plain and config.rope_parameters["rope_type"] in ROPE_TYPES


def can_forward(module: PreTrainedModel) -> bool:
    """Return whether `forward` runs the model: plain layers, LoRA too, in float32 on a CPU, where it gains most.

    Hooks on its submodules would not be called.
    """
    body: Any = module.base_model
    if not is_llama_family(module) or body.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    plain = type(body.get_input_embeddings()) is nn.Embedding
    plain = plain and all(map(is_mergeable_linear, _projections(body)))
    return plain and body.dtype == torch.float32


def can_decode(module: PreTrainedModel) -> bool:
    """Return whether `LlamaDecoder` runs the model: its linear layers are plain, not quantised, or LoRA's over such."""
    return is_llama_family(module) and all(is_mergeable_linear(part) for part in _projections(module.base_model))


def _projections(body: Any) -> list[nn.Module]:
    return [part for name, part in body.named_modules() if name.endswith("_proj")]
