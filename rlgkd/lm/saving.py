"""Saves Hugging Face folders, in which plain transformers generate what was generated here."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import SettingError
from rlgkd.lm.adapter_files import remove_adapter, save_adapter
from rlgkd.lm.lora import merged_state_dict
from rlgkd.lm.model_files import without_bars
from rlgkd.lm.text_format import end_token
from rlgkd.permissions import follow_umask
from rlgkd.sharding import is_sharded, shallow_copy, state_dict

ADAPTER_FOLDER = "adapter"
"""Folder in the saved one for the adapters by themselves."""
TEMPLATE_FILES, TEMPLATE_FOLDER = ("chat_template.jinja", "chat_template.json"), "additional_chat_templates"
"""Where transformers keeps chat templates."""
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens")
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p")
"""How a server samples where nothing else is said; it bends no greedy text."""
NEUTRAL = (None, False, True, 0, 1)
"""Values of the others that change nothing."""
_log = logging.getLogger(__name__)


def save(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    end_ids: frozenset[int] = frozenset(),
    dtype: torch.dtype | None = None,
    adapters: bool = False,
) -> None:
    """Write a Hugging Face folder: safetensors (LoRA adapters merged into the weights), configuration, tokenizer.

    Its generation config keeps the token ids and how to sample; what would change the distribution itself, such as a
    penalty, is left out, and ids that are no tokens, of a padded vocabulary, are suppressed.

    Args:
        module: The model, which stays as it is.
        tokenizer: Its tokenizer.
        folder: Where to write.
        end_ids: The ids that end a text, the tokenizer's own first; empty keeps those of the model.
        dtype: The precision of the written weights; None is that of the model.
        adapters: Write the one LoRA adapter also by itself, in the folder `adapter` in this one.

    An adapter that was in the folder is removed: the folder would open as that adapter on the model it was trained on.

    Raises: SettingError for `adapters` if the model has none, or several, or if `folder` is that of the model under it.
    """
    if adapters:
        check_not_base(module, folder)
    saved = shallow_copy(module)
    saved.config = copy.deepcopy(module.config)
    if module.generation_config is not None:
        saved.generation_config = generation_config(module, tokenizer, end_ids)
    # `add_adapter` sets this, and `save_pretrained` would then write the adapters alone.
    saved._hf_peft_config_loaded = False
    state = merged_state_dict(module)
    if state is None and is_sharded(module):
        state = state_dict(module)
    if dtype is not None:
        state = _cast(state_dict(module) if state is None else state, dtype)
    with without_bars():
        saved.save_pretrained(folder, safe_serialization=True, state_dict=state)
    if dtype is not None:  # save_pretrained writes the precision of the model
        saved.config.dtype = dtype
        saved.config.save_pretrained(folder)
    # What another tokenizer left there would become this one's if it has no template.
    for name in TEMPLATE_FILES:
        (Path(folder) / name).unlink(missing_ok=True)
    shutil.rmtree(Path(folder) / TEMPLATE_FOLDER, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    follow_umask(Path(folder).glob("*.safetensors"))
    remove_older_adapters(folder)
    if adapters:
        save_adapter(module, Path(folder) / ADAPTER_FOLDER)


def check_not_base(module: PreTrainedModel, folder: str | Path) -> None:
    """Raise SettingError if the folder is that of the model under the adapter, which would be lost."""
    base = module.config.name_or_path or ""
    if os.path.isdir(base) and os.path.isdir(folder) and os.path.samefile(base, folder):
        raise SettingError("path", str(folder), "it holds the model that the adapter is on; save elsewhere")


def remove_older_adapters(folder: str | Path) -> None:
    """Remove adapters of what a folder held before: it would open as one of them."""
    for place in (Path(folder), Path(folder) / ADAPTER_FOLDER):
        if remove_adapter(place):
            _log.warning("%s held an adapter of what was there before; it was removed", place)


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast weights; those that share their memory, as tied embeddings do, share it still, so that one is saved."""
    cast: dict[tuple[object, ...], Tensor] = {}
    result = {}
    for name, value in state.items():
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        result[name] = cast.setdefault(place, value.to(dtype) if value.is_floating_point() else value)
    return result


def generation_config(
    module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]
) -> GenerationConfig:
    """The generation config of a saved model; see `save`."""
    given = module.generation_config.to_diff_dict()
    kept = {name: value for name, value in given.items() if name in KEPT}
    if given.get("do_sample"):  # transformers refuse to save the others without it
        kept |= {name: value for name, value in given.items() if name in SAMPLING}
    if end_ids:
        own = end_token(tokenizer)
        ids = sorted(end_ids, key=lambda id_: (id_ != own, id_))
        kept["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    entries = module.get_output_embeddings().weight.shape[0]
    if entries > len(tokenizer):
        kept["suppress_tokens"] = list(range(len(tokenizer), entries))
    known = {*KEPT, *SAMPLING, *GenerationConfig().to_diff_dict(), "_from_model_config", "suppress_tokens"}
    if dropped := [name for name, value in given.items() if name not in known and value not in NEUTRAL]:
        _log.warning("the saved generation config is without %s, with which nothing was trained", ", ".join(dropped))
    return GenerationConfig(**kept)
