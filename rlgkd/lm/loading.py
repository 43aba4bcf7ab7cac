"""Opens models and tokenizers by name; model_names.py has what a name stands for.

Only safetensors and GGUF are read, never a pickle, and no remote code is run.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlgkd.errors import ModelError, RlgkdError
from rlgkd.lm.adapter_files import adapter_folder, open_adapter
from rlgkd.lm.copies import copy_sharing_frozen
from rlgkd.lm.layers import keep_layers
from rlgkd.lm.lora import is_adapter_weight, unwrapped
from rlgkd.lm.model_files import without_bars
from rlgkd.lm.model_names import EMBEDDED, base_of, name_as_text, no_folder, resolve
from rlgkd.lm.placement import is_fixed, quantization_config

FILE_LIBRARIES = ("safetensors", "safetensors_rust", "builtins", "tokenizers", "huggingface_hub")
"""Packages that raise types of their own for damaged files."""
OTHER_HEADS = ("Classification", "QuestionAnswering", "MultipleChoice")
"""How the names of architectures end that are no language models."""
_log = logging.getLogger(__name__)


def load(
    name: str | Path | PreTrainedModel | Any,
    *,
    layers: Sequence[int] = (),
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    auto_class: Any = None,
    merge_adapters: bool = False,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Open a model, in evaluation mode.

    Args:
        name: A path, a hub name, `embedded:NAME`, `smollm2-135m`, the folder of a LoRA adapter, or a loaded model (of
            transformers, or peft's LoRA around one), which is moved to the device itself. Where layers are cut its
            `copy_sharing_frozen` is taken instead, and in another precision a copy.
        layers: The transformer layers to keep, in order; empty keeps all.
        dtype: The weights' precision; None leaves that of the files, or of the loaded model.
        device: Where to put it; `auto` lets accelerate spread it over all devices.
        auto_class: The transformers class that opens it; by default the one for causal or for encoder-decoder models.
        merge_adapters: Add an adapter's folder into the weights; else it goes on from there, the model frozen.
        quantization: `8bit` or `4bit` weights, for a name.

    A loaded model that is quantised, or that accelerate has spread over devices, stays as it is.

    Raises: ModelError for what is no model, a missing or damaged one; DependencyError for a package that it needs.
    """
    if isinstance(name, str | Path):
        module = _open_model(str(name), dtype, auto_class, device, quantization)
        if adapter := adapter_folder(name):
            with _damage_named(str(name), "it could not be opened"):
                module = open_adapter(module, adapter, merge=merge_adapters)
    else:
        given = unwrapped(name)
        if any(part.is_meta for part in given.parameters()) and not is_fixed(given):
            remedy = "its weights are on the meta device, which holds none; open it with its weights"
            raise ModelError("model", given.config.name_or_path or type(given).__name__, remedy)
        if quantization is not None or str(device) == "auto":
            remedy = "it is used as it was opened; open it so, or give its name"
            raise ModelError("model", given.config.name_or_path or type(given).__name__, remedy)
        kept = dtype is None or is_fixed(given) or _has_dtype(given, dtype)
        module = given if kept or dtype is None else _copy_in(given, dtype)
        if layers and module is given:
            module = copy_sharing_frozen(given)
    if layers:
        module = keep_layers(module, layers)
    if not is_fixed(module) and str(device) != "auto":
        module = cast(Any, module).to(device=device)
    return cast(PreTrainedModel, module.eval())


def _open_model(
    name: str, dtype: torch.dtype | None, auto_class: Any, device: torch.device | str, quantization: str | None
) -> PreTrainedModel:
    """Open a model by name, an adapter's folder as the model under it."""
    base = base_of(name)
    where, arguments = resolve(base)
    if quantization is not None:
        if arguments.get("gguf_file"):
            raise ModelError("model", name, "a GGUF file is dequantised; give the folder of its model to quantise it")
        arguments["quantization_config"] = quantization_config(quantization)
    if quantization is not None or str(device) == "auto":
        arguments["device_map"] = "auto" if str(device) == "auto" else {"": device}
    if auto_class is None:
        made_for = (load_config(name).architectures or [""])[0] if not arguments.get("gguf_file") else ""
        if made_for.endswith(OTHER_HEADS):  # transformers would open it, without its head
            raise ModelError("model", name, f"it is a {made_for}, which writes no texts; give a causal language model")
        auto_class = AutoModelForCausalLM
        if not arguments.get("gguf_file"):
            auto_class = AutoModelForSeq2SeqLM if load_config(name).is_encoder_decoder else AutoModelForCausalLM
    module, report = _open(
        name,
        auto_class.from_pretrained,
        where,
        dtype="auto" if dtype is None else dtype,
        use_safetensors=True,
        output_loading_info=True,
        **arguments,
    )
    # transformers only warns, and fills them with random numbers.
    if report["missing_keys"]:
        lacking = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError("model", name, f"its file lacks weights ({lacking}, ...); copy it again")
    if unused := sorted(report["unexpected_keys"]):
        left_out = (
            "%r: %d of the weights in its files are not used, the first is %s; does its config.json belong to them?"
        )
        _log.warning(left_out, name, len(unused), unused[0])
    if arguments.get("gguf_file"):
        module = _without_quantization(module)
        if dtype is not None:
            _cast(module, dtype)
    if arguments.get("gguf_file") or base.startswith(EMBEDDED):
        # An adapter's file names the model by it: its folder is in this installation, and does not tell which file.
        module.config.name_or_path = base
    return cast(PreTrainedModel, module)


def dtype_of(name: str) -> torch.dtype | None:
    """The precision of this name; None for `auto`, which is that of the files."""
    return None if name == "auto" else cast(torch.dtype, getattr(torch, name))


def load_config(name: str | Path) -> PreTrainedConfig:
    """Open only a model's configuration.

    Raises: ModelError for a missing or damaged one; DependencyError as `load` does.
    """
    where, arguments = resolve(base_of(name_as_text(name)))
    config: PreTrainedConfig = _open(str(name), _opener(AutoConfig, arguments), where, **arguments)
    return config


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer that belongs to a model's name.

    Raises: ModelError for a missing or damaged one; DependencyError as `load` does.
    """
    adapter = adapter_folder(name_as_text(name))
    own = adapter is not None and (adapter / "tokenizer_config.json").is_file()
    where, arguments = (str(adapter), {"local_files_only": True}) if own else resolve(base_of(str(name)))
    tokenizer: PreTrainedTokenizerBase = _open(str(name), _opener(AutoTokenizer, arguments), where, **arguments)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes where there are no files
        raise ModelError("model", str(name), "its folder holds no tokenizer; copy tokenizer.json next to the model")
    return tokenizer


def _opener(auto_class: Any, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """What opens a configuration or tokenizer: a GGUF file is read once, for it is parsed whole, in seconds."""
    if "gguf_file" not in arguments:
        return cast(Callable[..., Any], auto_class.from_pretrained)

    def opened(where: str, *, gguf_file: str, **rest: Any) -> Any:
        stat = os.stat(os.path.join(where, gguf_file))
        return copy.deepcopy(_opened_once(auto_class, where, gguf_file, stat.st_mtime_ns, stat.st_size, **rest))

    return opened


@lru_cache(maxsize=8)
def _opened_once(auto_class: Any, where: str, gguf_file: str, *_: int, **rest: Any) -> Any:
    return auto_class.from_pretrained(where, gguf_file=gguf_file, **rest)


def _has_dtype(module: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Whether all weights but those of adapters are of this precision."""
    weights = (part for name, part in module.named_parameters() if not is_adapter_weight(name))
    return all(part.dtype == dtype for part in weights if part.is_floating_point())


def _copy_in(module: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy in another precision: a cast in place would change the caller's module."""
    _log.warning("model %r: a copy of it in %s is used; it stays as it is", module.config.name_or_path, dtype)
    module = copy.deepcopy(module)
    _cast(module, dtype)
    return module


def _cast(module: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast weights in place, but not those of adapters, whose small steps 16 bits would round away.

    Buffers only gain precision: rotary frequencies in 16 bits would move far positions.
    """
    for name, part in module.named_parameters():
        if part.is_floating_point() and not is_adapter_weight(name):
            part.data = part.data.to(dtype)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(torch.promote_types(buffer.dtype, dtype))


def _open(name: str, opener: Callable[..., Any], where: str, **arguments: Any) -> Any:
    local = "local_files_only" in arguments
    what = "it" if local else f"{no_folder(name)}, and the hub's model of that name"
    with _damage_named(name, f"{what} could not be opened"), without_bars() if local else nullcontext():
        return opener(where, trust_remote_code=False, **arguments)


@contextmanager
def _damage_named(name: str, what: str) -> Iterator[None]:
    """Raise ModelError for what goes wrong while files are read."""
    try:
        yield
    except RlgkdError:
        raise
    except (OSError, ValueError, json.JSONDecodeError, RuntimeError) as error:
        raise ModelError("model", name, f"{what} ({_first_line(error)}); check the name or the files") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in FILE_LIBRARIES:
            raise
        raise ModelError("model", name, f"it is damaged ({_first_line(error)}); copy it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _without_quantization(module: PreTrainedModel) -> PreTrainedModel:
    """Move weights dequantised from a GGUF file to a new model, since transformers refuses to save the opened one."""
    config = copy.deepcopy(module.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(module)(config)
    fresh.load_state_dict(module.state_dict())
    fresh.generation_config = module.generation_config
    return fresh
