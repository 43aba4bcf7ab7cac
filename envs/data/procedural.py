"""Endless items drawn by a rule, and the rule that assigns prompts to splits.

An item is a function of (split, seed, index), the same in every process. The splits share no prompt: the hash of a
prompt decides its split, and the items of a split are drawn until one belongs to it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping

from rlgkd.errors import DataError
from rlgkd.types import Item

SHARES: Mapping[str, range] = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""The tenths of all prompts that belong to each split."""
MAX_DRAWS = 2000
"""Draws for one item. That none of them falls to a split of one tenth has the probability 0.9^2000 = 3e-92."""


def prompt_tenth(prompt: str) -> int:
    """Return which tenth of all prompts this one belongs to, in 0..9."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).digest()[0] % 10


class ProceduralItems:
    """The items that a function `draw(rng, key)` returns."""

    def __init__(
        self, name: str, draw: Callable[[random.Random, str], Item], shares: Mapping[str, range] = SHARES
    ) -> None:
        """Take the function that draws an item; `name` gives the task random streams of its own."""
        self._name = name
        self._draw = draw
        self._shares = shares

    def size(self, split: str) -> int:
        """Return 2^31: there is no end of items.

        Raises: DataError for an unknown split.
        """
        if split not in self._shares:
            raise DataError("split", split, f"choose one of {', '.join(self._shares)}")
        return 2**31

    def item(self, split: str, seed: int, index: int) -> Item:
        """Return the item at this index of the stream that `seed` orders.

        Raises: DataError if the rule draws so few different prompts that none belongs to the split.
        """
        self.size(split)
        key = f"{split}/{seed}/{index}"
        rng = random.Random(f"rlgkd-{self._name}:{key}")  # a text seeds it the same way in every process
        for _ in range(MAX_DRAWS):
            item = self._draw(rng, key)
            if prompt_tenth(item.prompt) in self._shares[split]:
                return item
        raise DataError(
            "split", split, f"none of {MAX_DRAWS} prompts drawn by {self._name} falls to it; let them vary more"
        )
