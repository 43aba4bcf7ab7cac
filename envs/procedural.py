"""Items without end, drawn by a rule: what the procedural tasks share.

An item is a function of (split, seed, index), the same in every process. The splits share no prompt: the hash of a
prompt decides which split it belongs to, and each draws until it has one of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from rlgkd.errors import DataError
from rlgkd.types import Item

SHARES = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Tenths of all prompts."""


class SplitItems:
    """The items that `draw(rng, key)` makes."""

    def __init__(self, name: str, draw: Callable[[random.Random, str], Item]) -> None:
        """Name the task, whose random streams are its own, and say how an item is drawn."""
        self._name, self._draw = name, draw

    def size(self, split: str) -> int:
        """As good as endless.

        Raises: DataError for an unknown split.
        """
        if split not in SHARES:
            raise DataError("split", split, f"choose one of {', '.join(SHARES)}")
        return 2**31

    def item(self, split: str, seed: int, index: int) -> Item:
        """The item at this index of the stream that `seed` orders."""
        self.size(split)
        key = f"{split}/{seed}/{index}"
        rng = random.Random(f"rlgkd-{self._name}:{key}")
        for _ in range(10_000):
            drawn = self._draw(rng, key)
            if hashlib.blake2b(drawn.prompt.encode(), digest_size=8).digest()[0] % 10 in SHARES[split]:
                return drawn
        raise DataError("split", split, f"no prompt of {self._name} belongs to it; there must be more different ones")
