"""Reads rows of token ids with one model: sorted by length, in batches, right-padded; results in the rows' order."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.envs.rewards.prompts import Row
from rlgkd.errors import SettingError
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.shared_prefix import order_by_prefix

Model = str | Path | PreTrainedModel
Tokens = str | Path | PreTrainedTokenizerBase
HEAD = 16
"""Tokens by which rows are taken to begin alike."""


class RowReader:
    """A model in evaluation mode, its tokenizer, and how much it takes at once.

    A model given by name is opened in float32; a loaded one stays where it is (unless a device is named) and in its own
    precision.
    """

    def __init__(
        self, model: Model, tokenizer: Tokens | None, auto_class: Any, *, batch_size: int, device: str,
        max_tokens: int | None,
    ) -> None:  # fmt: skip
        """Open the model.

        Raises: ModelError; SettingError for a loaded model without a tokenizer, or a number below 1.
        """
        for field, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value is not None and value < 1:
                raise SettingError(field, value, "give 1 or more")
        if isinstance(model, PreTrainedModel):
            if tokenizer is None:
                raise SettingError("tokenizer", tokenizer, "a loaded model needs its tokenizer")
            self.model = model.eval() if device == "auto" else cast(Any, model).to(device).eval()
        else:
            tokenizer = model if tokenizer is None else tokenizer
            self.model = load(model, device=_accelerator() if device == "auto" else device, auto_class=auto_class)
        self.tokenizer = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else load_tokenizer(tokenizer)
        self.limit = _limit(self.model, self.tokenizer) if max_tokens is None else max_tokens
        self._pad = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        # A classifier made of a decoder reads its verdict at the last token that is no padding: it must know that.
        alone = self._pad is None and auto_class is AutoModelForSequenceClassification
        self.batch_size = 1 if alone else batch_size
        self._takes = inspect.signature(self.model.forward).parameters

    @torch.inference_mode()
    def read(self, rows: Sequence[Row], value: Callable[[dict[str, Tensor]], Tensor]) -> list[float | Exception]:
        """For each row what `value` makes of it, given inputs [B, T] and returning [B]; a row too long is a failure."""
        results: list[float | Exception] = [
            ValueError(f"{length} tokens are more than the {self.limit} of the model or of max_tokens")
            for length in (len(row["input_ids"]) for row in rows)
        ]
        fitting = [number for number, row in enumerate(rows) if 0 < len(row["input_ids"]) <= self.limit]
        # Longest first, so that too little memory shows at once; rows that begin alike stand together.
        ids = [rows[number]["input_ids"] for number in fitting]
        order = order_by_prefix([len(row) for row in ids], [tuple(row[:HEAD]) for row in ids])
        fitting = [fitting[place] for place in order]
        for start in range(0, len(fitting), self.batch_size):
            numbers = fitting[start : start + self.batch_size]
            values_B = value(self._collate([rows[number] for number in numbers]))
            for number, result in zip(numbers, values_B.float().tolist(), strict=True):
                results[number] = result
        return results

    def _collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return {
            name: pad_sequence(
                [torch.tensor(row[name]) for row in rows], batch_first=True,
                padding_value=(self._pad or 0) if name == "input_ids" else 0,
            ).to(self.model.device)
            for name in rows[0] if name in self._takes
        }  # fmt: skip


def _accelerator() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest row: what the tokenizer says, or the positions that there are."""
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    for name, module in model.named_modules():
        # RoBERTa counts from its padding id + 1 on, so that it takes two tokens fewer than it has positions.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            places = module.num_embeddings - module.padding_idx - 1
    return min(int(places), int(tokenizer.model_max_length))
