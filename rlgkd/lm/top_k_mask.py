"""An action mask by a frozen model: its k likeliest tokens. See rlgkd.ops.token_masks for what a mask is."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import SettingError
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.lora import unwrapped
from rlgkd.lm.prefix_cache import PrefixCache
from rlgkd.ops.token_masks import TokenMask


def top_k_mask(
    model: str | PreTrainedModel, k: int, *, tokenizer: PreTrainedTokenizerBase | None = None, keep_end: bool = True
) -> TokenMask:
    """Return the mask that allows the model's k likeliest next tokens (of equal ones those that `topk` takes).

    The model must be frozen, such as the policy's start or the teacher: a mask by the policy itself would change
    between sampling and update, and the ratio of the two policies with it.

    Args:
        model: A name, or a loaded causal model, none of whose parameters requires a gradient.
        k: From 1.
        tokenizer: That of a loaded model.
        keep_end: Allow all end tokens as well; False if a text shall end only where the model would end it.

    Raises:
        SettingError: k below 1, a model that can move, a loaded model without tokenizer; ModelError as `load` does.
    """
    if k < 1:
        raise SettingError("k", k, "give 1 or more")
    if not isinstance(model, str):
        model = unwrapped(model)
        if any(p.requires_grad for p in model.parameters()):
            remedy = "it can move; give a frozen copy, copy.deepcopy(model).requires_grad_(False)"
            raise SettingError("model", model.config.name_or_path, remedy)
        if tokenizer is None:
            raise SettingError("tokenizer", None, "give the loaded model's")
    else:
        tokenizer = tokenizer or load_tokenizer(model)
        model = load(model).requires_grad_(False)
    lm = language_model(model, tokenizer)
    prefix_cache = PrefixCache(lm)

    def mask(tokens_BT: Tensor) -> Tensor:
        logits_BV = lm.logits(prefix_cache.last_states(tokens_BT))
        likeliest_BK = logits_BV.topk(min(k, lm.vocabulary), dim=-1).indices
        allowed_BV = torch.zeros_like(logits_BV, dtype=torch.bool).scatter_(1, likeliest_BK, True)
        if keep_end:
            allowed_BV[:, sorted(lm.end_ids)] = True
        return allowed_BV.to(tokens_BT.device)

    return mask
