"""LoRA: a frozen model that learns low-rank additions to its linear layers (Hu et al. 2021, arXiv 2106.09685).

peft's layers are put into the model in place, so that it remains a transformers model:

    W x + b  becomes  (W + alpha / rank B A) x + b,    A [rank, in] random, B [out, rank] 0 at the start.

The experts of a mixture, which transformers keep as one parameter [experts, out, in], get such a pair each.
For other adapters (of some layers alone, say) give a model that has them: one with `add_adapter(LoraConfig(...))`, a
PeftModel, or an adapter's folder. Left out: those that are more than a sum of weights, such as DoRA.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlgkd.errors import DependencyError, ModelError, SettingError
from rlgkd.sharding import state_dict

NOT_PLAIN = "its adapters cannot be merged; give plain LoRA of linear layers, without DoRA and without biases"
_log = logging.getLogger(__name__)


def add_adapters(module: PreTrainedModel, rank: int, *, alpha: int | None = None, seed: int = 0) -> None:
    """Freeze a model and add adapters to all its linear layers but the head, and to its experts, in place.

    What share of the weights they reach is logged. Adapters of 16-bit weights are in float32.

    Args:
        module: Only the adapters are trained.
        rank: The rank of the additions, from 1 to that of the model's largest matrix.
        alpha: The additions are scaled by alpha / rank; None is twice the rank.
        seed: For the matrices A; no global generator is touched.

    Raises: DependencyError without peft; SettingError for a model that has adapters already, or a rank above that of
        all its matrices.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise DependencyError("lora_rank", rank, "install its package: pip install 'rlgkd[lora]'") from error
    if has_adapters(module):
        raise SettingError("lora_rank", rank, "the model has adapters already; leave it out to train those")
    most = max(min(weight.shape[-2:]) for weight in module.parameters() if weight.dim() > 1)
    if rank > most:
        remedy = f"no matrix of the model has a rank above {most}; give less, or 0 to train all weights"
        raise SettingError("lora_rank", rank, remedy)
    transposed = any(isinstance(part, Conv1D) for part in module.modules())  # GPT-2's weights are [in, out]
    experts = _expert_parameters(module)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=_linear_layers(module) if experts else "all-linear",
        target_parameters=experts or None,
        fan_in_fan_out=transposed,
        base_model_name_or_path=module.config.name_or_path,
    )
    # peft draws from the global generator of the CPU, whatever the model's device.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Of patterns for fused weights that peft itself has added, and which not every layer of DeepSeek has.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        if is_adapter_weight(name) and parameter.dtype.itemsize < 4:  # its steps would be lost in the rounding
            parameter.data = parameter.data.float()
    module.eval()
    _log.warning("%s", reach(module))


def reach(module: nn.Module) -> str:
    """Say which share of a model's weights its adapters reach, and which they do not."""
    adapted = _adapted_weights(module)
    trained, reached, others = 0, 0, Counter[str]()
    for name, parameter in module.named_parameters():
        plain = _plain_name(name)
        if is_adapter_weight(name):
            trained += parameter.numel()
        elif plain in adapted:
            reached += parameter.numel()
        else:
            layer, _, weight = plain.rpartition(".")
            others[layer.rpartition(".")[2] if weight in ("weight", "bias") else weight] += parameter.numel()
    total = reached + others.total()
    rest = ", ".join(f"{name} {count:,}" for name, count in others.most_common(5))
    rest += ", ..." if len(others) > 5 else ""
    return (
        f"LoRA trains {trained:,} weights, which reach {reached:,} of the model's {total:,} ({reached / total:.1%}); "
        f"these stay as they are: {rest}"
    )


def unwrapped(model: Any) -> PreTrainedModel:
    """The transformers model of a loaded model: itself, or the one that peft has put LoRA into.

    Raises: ModelError for anything else, or for other adapters than LoRA.
    """
    if isinstance(model, PreTrainedModel):
        return model
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        base = model.get_base_model()
        if isinstance(base, PreTrainedModel):
            if not all(map(is_plain_config, model.peft_config.values())):
                raise ModelError("model", type(model).__name__, NOT_PLAIN)
            return base
    remedy = "give a name, a folder, a loaded transformers model, or a PeftModel of LoRA around one"
    raise ModelError("model", type(model).__name__, remedy)


def is_plain_config(config: Any) -> bool:
    """Return whether an adapter of this peft configuration is LoRA and trains nothing besides."""
    return config.peft_type == "LORA" and not config.modules_to_save and not config.trainable_token_indices


def check_adapters(module: PreTrainedModel) -> None:
    """Raise ModelError for adapters of a loaded model that `merged_weight` cannot merge."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    for part in module.modules():
        # A module that is trained as a whole next to the adapters would be saved as it was.
        whole = type(part).__module__ == "peft.utils.other"
        if whole or (tuners and isinstance(part, tuners.BaseTunerLayer) and not _is_plain_lora(part)):
            raise ModelError("model", module.config.name_or_path or module.config.model_type, NOT_PLAIN)


def has_adapters(module: nn.Module) -> bool:
    """Return whether a model has LoRA adapters."""
    return any(map(_has_adapter, module.modules()))


def adapter_name(module: PreTrainedModel) -> str:
    """The name of a model's one adapter.

    Raises: SettingError for `save_adapter` if it has none, or several.
    """
    names = [*getattr(module, "peft_config", {})] if has_adapters(module) else []
    if len(names) != 1:
        has = f"it has the adapters {', '.join(names)}; give one" if names else "it has no adapters; set lora_rank"
        raise SettingError("save_adapter", True, f"the student must have one adapter: {has}")
    return str(names[0])


def is_adapter_weight(name: str) -> bool:
    """Return whether a parameter of this name is one of an adapter."""
    return ".lora_" in name


def is_mergeable_linear(part: Any) -> bool:
    """Return whether a layer is a linear one, `merged_weight` and its bias being all there is to it."""
    return is_plain_linear(part.base_layer if _has_adapter(part) and _is_plain_lora(part) else part)


def is_plain_linear(part: Any) -> bool:
    """Return whether a layer is torch's linear one with its weight in it: neither quantised nor moved in by a hook."""
    return type(part) is nn.Linear and type(part.weight) is nn.Parameter and not hasattr(part, "_hf_hook")


def base_linear(part: Any) -> nn.Linear:
    """A linear layer without the adapters that peft may have put around it."""
    return cast(nn.Linear, part.base_layer if _has_adapter(part) else part)


def merged_weight(part: Any) -> Tensor:
    """A linear layer's weight, plus its adapters where it has some and they are switched on."""
    if not _has_adapter(part):
        weight: Tensor = part.weight
        return weight
    return _with_adapters(part.base_layer.weight, [part])


def low_rank(part: Any) -> tuple[Tensor, Tensor] | None:
    """What adapters add to a linear layer's x W^T: x A^T B^T, with the scale in B; None if there is nothing.

    Returns: A [rank, in] and B [out, rank], both differentiable; several adapters are one of their ranks' sum.
    """
    if not _has_adapter(part):
        return None
    names = _adding(part)
    pairs = [(part.lora_A[name].weight, part.lora_B[name].weight * part.scaling[name]) for name in names]
    if len(pairs) <= 1:
        return pairs[0] if pairs else None
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)


@torch.no_grad()
def merged_state_dict(module: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of the model without adapters, which are merged into the weights; None if it has none.

    The model stays as it is, and each merged weight goes to the CPU, so no device holds the model twice.
    """
    adapted = _adapted_weights(module)
    if not adapted:
        return None
    state = {}
    for name, value in state_dict(module).items():
        if not is_adapter_weight(name):
            plain = _plain_name(name)
            state[plain] = _with_adapters(value, adapted[plain]).cpu() if plain in adapted else value
    return state


def _with_adapters(weight: Tensor, parts: Iterable[Any]) -> Tensor:
    """A weight plus what the layers of peft around it add."""
    for part in parts:
        for name in _adding(part):
            weight = weight + part.get_delta_weight(name).to(weight.dtype)
    return weight


def _adding(part: Any) -> list[str]:
    """The adapters that a layer of peft adds to its base: those that are switched on, that it has, and not merged."""
    on = not part.disable_adapters and not part.merged
    return [name for name in part.active_adapters if name in part.lora_A] if on else []


def _adapted_weights(module: nn.Module) -> dict[str, list[Any]]:
    """The names of the weights that have adapters, as in the model without them -> the layers that add to each."""
    adapted = defaultdict(list)
    for name, part in module.named_modules():
        if _has_adapter(part):
            adapted[f"{_plain_name(name)}.{getattr(part, 'parameter_name', 'weight')}"].append(part)
    return dict(adapted)


def _plain_name(name: str) -> str:
    """The name of a part in the model without adapters; peft puts a `base_layer` into those that it wraps."""
    return name.replace(".base_layer", "")


def _expert_parameters(module: nn.Module) -> list[str]:
    """The parameters that hold one matrix for each expert; convolutions have three dimensions as well."""
    return [
        f"{owner}.{name}"
        for owner, part in module.named_modules()
        for name, parameter in part.named_parameters(recurse=False)
        if parameter.ndim == 3 and not type(part).__module__.startswith("torch.nn")
    ]


def _linear_layers(module: PreTrainedModel) -> list[str]:
    head = module.get_output_embeddings()
    return [name for name, part in module.named_modules() if type(part) is nn.Linear and part is not head]


def _is_plain_lora(lora: Any) -> bool:
    """Whether peft's layer adds to a weight and does nothing else."""
    layers = _peft_lora()
    if layers is None or type(lora) not in (layers.Linear, layers.layer.ParamWrapper):
        return False
    return not getattr(lora, "lora_variant", None) and not any(lora.lora_bias.values())


def _has_adapter(part: nn.Module) -> bool:
    peft_lora = _peft_lora()
    return peft_lora is not None and isinstance(part, peft_lora.LoraLayer)


def _peft_lora() -> Any:
    """peft's module of LoRA layers; None if nothing has imported it, for then no model can have adapters."""
    return cast(Any, sys.modules.get("peft.tuners.lora"))
