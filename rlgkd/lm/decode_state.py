"""The state of decoding some rows with a model's own forward pass: its KV cache, and which tokens are in it.

Dimensions: B rows, T tokens, H hidden.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from rlgkd.devices import to_device


def cache_argument(module: Any) -> str:
    """What a model's forward pass calls its KV cache: `cache` since transformers 5.24, `past_key_values` before."""
    return _cache_argument(type(module).forward)


@functools.cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@dataclass
class DecodeState:
    """The state of decoding some rows with a model's own forward pass; `LanguageModel.advance` changes it in place."""

    cache: Cache
    attention_BT: Tensor
    """1 at the tokens that the cache holds, 0 at padding."""
    encoder_BTH: Tensor | None = None
    """The encoder's states of the prompts, of an encoder-decoder model."""
    encoder_mask_B11T: Tensor | None = None
    """The additive mask of those states."""
    padded: bool = True
    """Whether `attention_BT` may hide anything, as the host knows: asking it would wait for the device."""

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but these; the same row may be kept several times."""
        # Not `batch_select_indices`, which the caches of linear attention lack.
        self.cache.reorder_cache(cast(torch.LongTensor, rows))
        self.attention_BT = self.attention_BT[rows]
        if self.encoder_BTH is not None and self.encoder_mask_B11T is not None:
            self.encoder_BTH = self.encoder_BTH[rows]
            self.encoder_mask_B11T = self.encoder_mask_B11T[rows]

    @property
    def can_replace_rows(self) -> bool:
        """Whether `replace_rows` works: each layer caches all tokens, and there is no encoder."""
        return self.encoder_BTH is None and all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def replace_rows(self, rows: Tensor, other: DecodeState) -> None:
        """Overwrite these rows with the rows of another state; drop columns that no row needs any more."""
        width = max(self.attention_BT.shape[1], other.attention_BT.shape[1])

        def replaced(ours: Tensor, theirs: Tensor, dim: int) -> Tensor:
            ours = _pad_left(ours, width, dim)
            theirs = _pad_left(theirs, width, dim)
            return ours.index_copy(0, rows, theirs)

        attention_BT = replaced(self.attention_BT, other.attention_BT, 1)
        unused = int(attention_BT.any(0).int().argmax())
        self.attention_BT = attention_BT[:, unused:]
        for ours, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            assert isinstance(ours, DynamicLayer) and isinstance(theirs, DynamicLayer)
            for name in ("keys", "values"):
                tensor = replaced(getattr(ours, name), getattr(theirs, name), 2)
                setattr(ours, name, tensor.narrow(2, unused, width - unused))


def left_padded(rows: Sequence[Sequence[int]], *, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [B, T], of rows padded on the left so that all end in the last column."""
    width = max(map(len, rows))
    tokens = np.full((len(rows), width), pad, dtype=np.int64)
    attention = np.zeros((len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        tokens[index, width - len(row) :] = row
        attention[index, width - len(row) :] = 1
    return to_device(tokens, device), to_device(attention, device)


def _pad_left(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Put zeros in front, up to `width` entries along `dim`."""
    shape = list(tensor.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([tensor.new_zeros(shape), tensor], dim)
