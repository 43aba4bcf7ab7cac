"""Folders that hold a LoRA adapter alone, as peft writes them: adapter_config.json, adapter_model.safetensors."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from transformers import PreTrainedModel

from rlgkd.errors import DependencyError, ModelError
from rlgkd.lm.lora import adapter_name, is_plain_config, unwrapped
from rlgkd.permissions import follow_umask
from rlgkd.sharding import state_dict

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def adapter_folder(name: str | Path) -> Path | None:
    """The folder of this name if it holds an adapter; None for all other names."""
    path = Path(name).expanduser()
    return path if os.path.isfile(path / CONFIG) else None


def adapter_base(folder: Path) -> str:
    """The name of the model that an adapter was trained on.

    Raises: ModelError if its file names none.
    """
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        remedy = f"its {CONFIG} names no model in base_model_name_or_path; write there which it was trained on"
        raise ModelError("model", str(folder), remedy)
    return base


def open_adapter(module: PreTrainedModel, folder: Path, *, merge: bool) -> PreTrainedModel:
    """Put an adapter on a model, in place, the only part of it that trains; or add it to the weights.

    Raises: ModelError for one that is not plain LoRA, lacks weights or has them in a pickle; DependencyError without
    peft.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise DependencyError("model", str(folder), "install its package: pip install 'rlgkd[lora]'") from error
    if not (folder / WEIGHTS).is_file():
        raise ModelError("model", str(folder), f"it has no {WEIGHTS}; save the adapter as safetensors")
    if not is_plain_config(PeftConfig.from_pretrained(str(folder))):
        raise ModelError("model", str(folder), "it is no plain LoRA; merge it into its model and give that folder")
    with warnings.catch_warnings():
        # peft asks transformers 5 for it by its old name.
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        adapted: Any = PeftModel.from_pretrained(cast(Any, module), str(folder), is_trainable=not merge)
    # peft only warns, and goes on with an adapter that changes nothing.
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        lacking = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - {*weights.keys()}
    if lacking:
        raise ModelError("model", str(folder), f"its {WEIGHTS} lacks {len(lacking)} weights, such as {min(lacking)}")
    return cast(PreTrainedModel, adapted.merge_and_unload()) if merge else unwrapped(adapted)


def remove_adapter(folder: Path) -> bool:
    """Remove an adapter's files from a folder, if it has any, and return whether it had."""
    found = [folder / name for name in (CONFIG, WEIGHTS) if (folder / name).is_file()]
    for path in found:
        path.unlink()
    return bool(found)


def save_adapter(module: PreTrainedModel, folder: Path) -> None:
    """Write a model's one adapter as peft's `save_pretrained` does, for PeftModel.from_pretrained to open."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    name = adapter_name(module)
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(
        cast(Any, module), state_dict(module), adapter_name=name, save_embedding_layers=False
    )
    prefix = "base_model.model."  # where the PeftModel that opens it has the model
    tensors = {prefix + name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.copy(cast(Any, module).peft_config[name])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    follow_umask([folder / WEIGHTS])
