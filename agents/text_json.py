"""Texts in the training state, as JSON values: token ids and numbers, which come back to the bit.

Their items are not in it: the state has each prompt's index, and the stream of items has the item.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlgkd.types import Episode, Item, Source, StopReason


def to_json(episode: Episode) -> dict[str, Any]:
    """A text as JSON values, but for its item, its source and its entropies."""
    return {
        "sample": episode.sample,
        "tokens": episode.tokens_T.tolist(),
        "actions": np.flatnonzero(episode.action_mask_T).tolist(),
        "logp": episode.logp_T[episode.action_mask_T].tolist(),
        "stop": str(episode.stop),
        "text": episode.text,
        "turns": list(episode.turns),
    }


def from_json(values: Mapping[str, Any], item: Item, source: Source) -> Episode:
    """The text that `to_json` was given; its entropies are NaN at actions, unless `entropy` is among the values.

    Raises: TypeError, ValueError or KeyError for values that `to_json` does not give.
    """
    tokens_T = np.array(values["tokens"], dtype=np.int64)
    mask_T = np.zeros(len(tokens_T), dtype=bool)
    mask_T[np.array(values["actions"], dtype=np.int64)] = True
    logp_T, entropy_T = (np.zeros(len(tokens_T), dtype=np.float32) for _ in range(2))
    logp_T[mask_T], entropy_T[mask_T] = values["logp"], values.get("entropy", np.nan)
    return Episode(
        item=item,
        tokens_T=tokens_T,
        action_mask_T=mask_T,
        logp_T=logp_T,
        entropy_T=entropy_T,
        stop=StopReason(values["stop"]),
        source=source,
        sample=int(values["sample"]),
        text=str(values["text"]),
        turns=tuple(map(str, values["turns"])),
    )
