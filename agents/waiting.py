"""Texts that were sampled for the next update while the last one trained, as part of the training state.

A run that goes on from a checkpoint trains on the same texts as one that was never stopped: what older weights sampled
cannot be sampled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rlgkd.agents.text_json import from_json
from rlgkd.types import Episode, Item, Source


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
    """Each as JSON (rlgkd.agents.text_json), with the index of its prompt among the update's."""

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
            from_json(text, Item(key="", prompt=""), Source.STUDENT)
            if type(text["prompt"]) is not int or text["prompt"] < 0:
                raise ValueError(f"a waiting text is of the prompt {text['prompt']!r}")
        return cls(**counts, texts=texts)

    def episodes(self, items: Sequence[Item], chosen: Sequence[int]) -> list[Episode]:
        """The texts of some of the update's items, in their order."""
        some = [text for text in self.texts if text["prompt"] in chosen]
        return [from_json(text, items[text["prompt"]], Source.STUDENT) for text in some]
