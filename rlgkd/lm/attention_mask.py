"""Attention masks in the additive form, which every attention implementation takes."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: 0 where `visible`, else the lowest finite number of `dtype`.

    Finite, so that a row that sees nothing has a softmax without NaN.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
