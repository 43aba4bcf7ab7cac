"""Runs one model over many rows of token ids: sorted by length, in batches, padded on the right.

A row gets the number that it would get alone. A row that is too long for the model has failed; nothing is cut.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.loading import load, load_config, load_tokenizer
from rlgkd.lm.shared_prefix import order_by_prefix

Model = str | Path | PreTrainedModel
Tokenizer = str | Path | PreTrainedTokenizerBase
CLASSIFIER = "ForSequenceClassification"
"""How the class names of classifiers end."""
PREFIX_TOKENS = 16
"""Rows that share so many first tokens are batched together, so that a causal model may share their prefix."""


class BatchedModel:
    """A model in evaluation mode: opened in float32, or a loaded one in its own precision and on its own device."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None,
        auto_class: Any,
        *,
        batch_size: int,
        device: str,
        max_tokens: int | None,
    ) -> None:
        """Open the model.

        Raises: ModelError; SettingError for a loaded model without a tokenizer, or a number below 1.
        """
        for field, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise SettingError(field, value, "give 1 or more")
        if isinstance(model, PreTrainedModel):
            if tokenizer is None:
                raise SettingError("tokenizer", tokenizer, "a loaded model needs its tokenizer")
            self.module = model.eval() if device == "auto" else cast(Any, model).to(device).eval()
        else:
            tokenizer = model if tokenizer is None else tokenizer
            self.module = load(model, device=_accelerator() if device == "auto" else device, auto_class=auto_class)
        self.tokenizer = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else load_tokenizer(tokenizer)
        self.max_length = _max_length(self.module, self.tokenizer) if max_tokens is None else max_tokens
        self._pad = getattr(self.module.config.get_text_config(), "pad_token_id", None)
        # A classifier with a decoder's body takes the last token that is no padding; without a padding id it cannot
        # tell which one that is in a padded row.
        unpadded = self._pad is None and auto_class is AutoModelForSequenceClassification
        self.batch_size = 1 if unpadded else batch_size
        self._parameters = inspect.signature(self.module.forward).parameters

    @torch.inference_mode()
    def values(
        self, rows: Sequence[Mapping[str, list[int]]], value: Callable[[dict[str, Tensor]], Tensor]
    ) -> list[float | Exception]:
        """Return one number for each row, in order; a row that is too long has an exception in its place.

        `value` takes the inputs of a batch, each [B, T], and returns [B].
        """
        results: list[float | Exception] = [
            ValueError(f"{length} tokens are more than the {self.max_length} of the model or of max_tokens")
            for length in (len(row["input_ids"]) for row in rows)
        ]
        fitting = [number for number, row in enumerate(rows) if 0 < len(row["input_ids"]) <= self.max_length]
        ids = [rows[number]["input_ids"] for number in fitting]
        # The longest come first, so that a lack of memory shows at once.
        order = order_by_prefix([len(row) for row in ids], [tuple(row[:PREFIX_TOKENS]) for row in ids])
        fitting = [fitting[position] for position in order]
        for start in range(0, len(fitting), self.batch_size):
            numbers = fitting[start : start + self.batch_size]
            values_B = value(self._collate([rows[number] for number in numbers]))
            for number, result in zip(numbers, values_B.float().tolist(), strict=True):
                results[number] = result
        return results

    def _collate(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """The inputs that the model takes, each [B, T], padded on the right."""
        inputs = {}
        for name in rows[0]:
            if name in self._parameters:
                padding = (self._pad or 0) if name == "input_ids" else 0
                columns = [torch.tensor(row[name]) for row in rows]
                padded_BT = pad_sequence(columns, batch_first=True, padding_value=padding)
                inputs[name] = padded_BT.to(self.module.device)
        return inputs


def config_of(model: Model) -> PreTrainedConfig:
    """Return the configuration of a model, loaded or by name."""
    return model.config if isinstance(model, PreTrainedModel) else load_config(model)


def class_name(model: Model) -> str:
    """Return the name of the model's class, as far as its configuration says."""
    if isinstance(model, PreTrainedModel):
        return type(model).__name__
    return next(iter(load_config(model).architectures or ()), "")


def check_class(model: Model, *endings: str) -> None:
    """Refuse a loaded model of another class; for one that is opened by name, `load` reports the missing weights.

    Raises: ModelError.
    """
    if isinstance(model, PreTrainedModel) and not class_name(model).endswith(endings):
        raise ModelError("model", class_name(model), f"give one whose class ends with {' or '.join(endings)}")


def first_probability(logits_B2: Tensor) -> Tensor:
    """[B, 2] -> [B]: the probability of the first of two answers."""
    return logits_B2.float().softmax(-1)[:, 0]


def _accelerator() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens of the longest row: the tokenizer's limit, or the number of positions if that is smaller."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    for name, module in model.named_modules():
        # RoBERTa counts from its padding id + 1 on, so that it takes two tokens fewer than it has positions.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    return min(int(positions), int(tokenizer.model_max_length))
