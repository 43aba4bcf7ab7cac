"""Models that are quantised, and models that accelerate spreads over devices.

Both are used as they are, never cast or moved; only a teacher can be one.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, cast

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from rlgkd.errors import DependencyError, SettingError


def is_quantized(module: PreTrainedModel) -> bool:
    """Return whether transformers opened it with quantised weights."""
    return bool(getattr(module, "is_quantized", False))


def is_dispatched(module: PreTrainedModel) -> bool:
    """Return whether accelerate moves its states between devices, or its weights in from elsewhere."""
    return len({*(getattr(module, "hf_device_map", None) or {}).values()}) > 1


def is_fixed(module: PreTrainedModel) -> bool:
    """Return whether its weights must stay in their precision and on their devices."""
    return is_quantized(module) or is_dispatched(module)


def quantization_config(bits: str) -> BitsAndBytesConfig:
    """The way in which weights of `8bit` (LLM.int8, arXiv 2208.07339) or `4bit` (NF4, arXiv 2305.14314) are opened.

    Raises: DependencyError without bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DependencyError("teacher_quantization", bits, "install its package: pip install 'rlgkd[quantization]'")
    # It says at every product that it casts its input.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def checked_device(name: str) -> str:
    """Return a device's name, or `auto`.

    Raises: SettingError for a name that torch does not know, or a device that is not here.
    """
    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise SettingError("teacher_device", name, "give a device that is here, such as cpu, or auto") from error
    return name


def local_head(module: PreTrainedModel, head: nn.Linear) -> nn.Linear:
    """The head of a dispatched model as a copy where its input goes, since its own weight may be anywhere."""
    from accelerate.utils import align_module_device

    embedding = module.get_input_embeddings()
    hook = cast(Any, getattr(embedding, "_hf_hook", None))
    device = embedding.weight.device if hook is None else torch.device(hook.execution_device)
    with align_module_device(head):
        copy = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        copy.load_state_dict(
            {name: value.to(device, copy=True) for name, value in head.state_dict().items()}, assign=True
        )
    return copy.requires_grad_(False)
