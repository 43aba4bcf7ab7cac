"""Items without end, drawn by a rule, and the rule by which prompts are dealt out to splits.

An item is a function of (split, seed, index), the same in every process. The splits share no prompt: the hash of a
prompt decides which split it belongs to, and each draws until it has one of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping

from rlgkd.errors import DataError
from rlgkd.types import Item

SHARES: Mapping[str, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Tenths of all prompts."""
DRAWS = 2000
"""After so many draws without a prompt of its own a split has none: chance alone would need 0.9^2000 = 3e-92."""


def tenth(prompt: str) -> int:
    """Which tenth of all prompts this one belongs to."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).digest()[0] % 10


class SplitItems:
    """The items that `draw(rng, key)` makes."""

    def __init__(
        self, name: str, draw: Callable[[random.Random, str], Item], shares: Mapping[str, range] = SHARES
    ) -> None:
        """Name the task, whose random streams are its own, and say how an item is drawn."""
        self._name, self._draw, self._shares = name, draw, shares

    def size(self, split: str) -> int:
        """As good as endless.

        Raises: DataError for an unknown split.
        """
        if split not in self._shares:
            raise DataError("split", split, f"choose one of {', '.join(self._shares)}")
        return 2**31

    def item(self, split: str, seed: int, index: int) -> Item:
        """The item at this index of the stream that `seed` orders.

        Raises: DataError where the rule draws so few different prompts that none falls to the split.
        """
        self.size(split)
        key = f"{split}/{seed}/{index}"
        rng = random.Random(f"rlgkd-{self._name}:{key}")
        for _ in range(DRAWS):
            drawn = self._draw(rng, key)
            if tenth(drawn.prompt) in self._shares[split]:
                return drawn
        raise DataError(
            "split", split, f"none of {DRAWS} prompts drawn by {self._name} falls to it; let them vary more"
        )
