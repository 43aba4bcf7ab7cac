"""Copies of models that share memory, and whether two models are the same to the bit."""

from __future__ import annotations

import copy
import hashlib
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from rlgkd.lm.model import LanguageModel
from rlgkd.sharding import full

ModelT = TypeVar("ModelT", bound=PreTrainedModel | LanguageModel)


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
