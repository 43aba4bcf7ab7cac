"""What is known of a teacher at the actions of one text, and a batch of such texts as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlgkd.devices import to_device
from rlgkd.ops.top_k_bucket import KnownTokens

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
LOWEST = -9999.0
"""Nats that stand for a probability of 0: as in vLLM's answers, and in what is written to files."""


@dataclass(frozen=True, kw_only=True)
class KnownText:
    """A teacher's log-probabilities, in nats, at the L actions of a text, on the host."""

    logp_LK: Floats
    """Those of the K most probable tokens, in descending order; -inf where fewer are known."""
    ids_LK: Ids
    """The ids of these tokens."""
    rest_L: Floats
    """The log-probability of all other tokens together."""
    token_logp_L: Floats
    """The log-probability of the token that was written."""


def collate(texts: Sequence[KnownText | None], lengths: Sequence[int], device: torch.device | str) -> KnownTokens:
    """Join the actions of several texts, in their order, on a device.

    Args:
        texts: None for one of which nothing is known: its place is filled with a distribution that means nothing, and
            its divergence must have no weight.
        lengths: The actions of each.
        device: Where the tensors go.
    """
    k = next((text.logp_LK.shape[1] for text in texts if text is not None), 1)
    rows = [_filler(length, k) if text is None else text for text, length in zip(texts, lengths, strict=True)]
    return KnownTokens(
        logp_NK=to_device(np.concatenate([row.logp_LK for row in rows]), device),
        ids_NK=to_device(np.concatenate([row.ids_LK for row in rows]), device),
        rest_N=to_device(np.concatenate([row.rest_L for row in rows]), device),
        token_logp_N=to_device(np.concatenate([row.token_logp_L for row in rows]), device),
    )


def _filler(length: int, k: int) -> KnownText:
    """A uniform distribution over the first k tokens and the rest: finite, so that a weight of 0 makes it vanish."""
    uniform_LK = np.full((length, k + 1), -np.log(k + 1), dtype=np.float32)
    return KnownText(
        logp_LK=uniform_LK[:, :k],
        ids_LK=np.tile(np.arange(k, dtype=np.int64), (length, 1)),
        rest_L=uniform_LK[:, 0],
        token_logp_L=uniform_LK[:, 0],
    )
