"""Texts that were sampled for the next update while the last one trained, as part of the training state.

A run that goes on from a checkpoint trains on the same texts as one that was never stopped: what older weights sampled
cannot be sampled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rlgkd.types import Episode, Item, Source, StopReason


@dataclass(frozen=True, kw_only=True)
class WaitingTexts:
    """The texts of an update that is to come."""

    update: int
    """Its number."""
    group: int
    """Samples of each prompt."""
    failed: int
    """Texts that the servers failed to give."""
    texts: tuple[Mapping[str, Any], ...]
    """Each as JSON, with the index of its prompt among the update's."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` takes them back."""
        return {
            "update": self.update,
            "group": self.group,
            "failed": self.failed,
            "texts": [dict(t) for t in self.texts],
        }

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """What `to_json` gave.

        Raises: TypeError, ValueError or KeyError for values that it does not give.
        """
        counts = {name: values[name] for name in ("update", "group", "failed")}
        if any(type(count) is not int or count < 0 for count in counts.values()):
            raise ValueError(f"its waiting texts have the counts {counts}")
        texts = tuple(values["texts"])
        for text in texts:
            _episode(text, Item(key="", prompt=""))
            if type(text["prompt"]) is not int or text["prompt"] < 0:
                raise ValueError(f"a waiting text is of the prompt {text['prompt']!r}")
        return cls(**counts, texts=texts)

    def episodes(self, items: Sequence[Item], chosen: Sequence[int]) -> list[Episode]:
        """The texts of some of the update's items, in their order."""
        return [_episode(text, items[text["prompt"]]) for text in self.texts if text["prompt"] in chosen]


def to_json(episode: Episode, prompt: int) -> dict[str, Any]:
    """An episode as JSON values, but for its item; numbers come back to the bit. Its entropies are not kept."""
    return {
        "prompt": prompt,
        "sample": episode.sample,
        "tokens": episode.tokens_T.tolist(),
        "actions": np.flatnonzero(episode.action_mask_T).tolist(),
        "logp": episode.logp_T[episode.action_mask_T].tolist(),
        "stop": str(episode.stop),
        "text": episode.text,
        "turns": list(episode.turns),
    }


def _episode(text: Mapping[str, Any], item: Item) -> Episode:
    tokens_T = np.array(text["tokens"], dtype=np.int64)
    mask_T = np.zeros(len(tokens_T), dtype=bool)
    mask_T[np.array(text["actions"], dtype=np.int64)] = True
    logp_T, entropy_T = np.zeros(len(tokens_T), dtype=np.float32), np.zeros(len(tokens_T), dtype=np.float32)
    logp_T[mask_T], entropy_T[mask_T] = text["logp"], np.nan
    return Episode(
        item=item,
        tokens_T=tokens_T,
        action_mask_T=mask_T,
        logp_T=logp_T,
        entropy_T=entropy_T,
        stop=StopReason(text["stop"]),
        source=Source.STUDENT,
        sample=int(text["sample"]),
        text=str(text["text"]),
        turns=tuple(map(str, text["turns"])),
    )
