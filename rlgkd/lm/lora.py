"""LoRA: a frozen model that learns low-rank additions to its linear layers (Hu et al. 2021, arXiv 2106.09685).

peft's layers are put into the model in place, so that it remains a transformers model:

    W x + b  becomes  (W + alpha / rank B A) x + b,    A [rank, in] random, B [out, rank] 0 at the start.

For other adapters (of some layers alone, say) give a loaded model that has them from its
`add_adapter(LoraConfig(...))`. Left out: those that are more than a sum of weights, such as DoRA.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlgkd.errors import DependencyError, ModelError, SettingError


def add_adapters(module: PreTrainedModel, rank: int, *, alpha: int | None = None, seed: int = 0) -> None:
    """Freeze a model and add adapters to all its linear layers but the head, in place.

    Args:
        module: Only the adapters are trained.
        rank: The rank of the additions, 1 or more.
        alpha: The additions are scaled by alpha / rank; None is twice the rank.
        seed: For the matrices A; no global generator is touched.

    Raises: DependencyError without peft; SettingError for a model that has adapters already.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise DependencyError("lora_rank", rank, "install its package: pip install 'rlgkd[lora]'") from error
    if any(map(_has_adapter, module.modules())):
        raise SettingError("lora_rank", rank, "the model has adapters already; leave it out to train those")
    transposed = any(isinstance(part, Conv1D) for part in module.modules())  # GPT-2's weights are [in, out]
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules="all-linear", fan_in_fan_out=transposed
    )
    # peft draws from the global generator of the CPU, whatever the model's device.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, module)
    module.eval()


def check_adapters(module: PreTrainedModel) -> None:
    """Raise ModelError for adapters of a loaded model that `merged_weight` cannot merge."""
    for part in module.modules():
        if _has_adapter(part) and not _is_plain_lora(part):
            remedy = "its adapters cannot be merged; give plain LoRA of linear layers, without DoRA and without biases"
            raise ModelError("model", module.config.name_or_path or module.config.model_type, remedy)


def is_mergeable_linear(part: Any) -> bool:
    """Return whether a layer is a linear one, `merged_weight` and its bias being all there is to it."""
    return type(part.base_layer if _has_adapter(part) and _is_plain_lora(part) else part) is nn.Linear


def merged_weight(part: Any) -> Tensor:
    """A linear layer's weight, plus its adapters where it has some and they are switched on."""
    if not _has_adapter(part):
        weight: Tensor = part.weight
        return weight
    weight = part.base_layer.weight
    if part.disable_adapters or part.merged:
        return weight
    for name in part.active_adapters:
        weight = weight + part.get_delta_weight(name).to(weight.dtype)
    return weight


@torch.no_grad()
def merged_state_dict(module: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of the model without adapters, which are merged into the weights; None if it has none.

    The model stays as it is, and each merged weight goes to the CPU, so no device holds the model twice.
    """
    adapted = {name: part for name, part in module.named_modules() if _has_adapter(part)}
    if not adapted:
        return None
    state = {}
    for name, value in module.state_dict().items():
        layer, base, parameter = name.rpartition(".base_layer.")
        if base:
            state[f"{layer}.{parameter}"] = merged_weight(adapted[layer]).cpu() if parameter == "weight" else value
        elif name.partition(".lora_")[0] not in adapted:
            state[name] = value
    return state


def _is_plain_lora(lora: Any) -> bool:
    """Whether peft's layer adds to a linear layer's weight and does nothing else."""
    return type(lora) is _peft_lora().Linear and not lora.lora_variant and not any(lora.lora_bias.values())


def _has_adapter(part: nn.Module) -> bool:
    peft_lora = _peft_lora()
    return peft_lora is not None and isinstance(part, peft_lora.LoraLayer)


def _peft_lora() -> Any:
    """peft's module of LoRA layers; None if nothing has imported it, for then no model can have adapters."""
    return sys.modules.get("peft.tuners.lora")
