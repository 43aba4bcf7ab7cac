"""Where prompts come from: a source of items, and the one that holds them in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from rlgkd.errors import DataError
from rlgkd.types import Item


@runtime_checkable
class Items(Protocol):
    """Where prompts come from."""

    def size(self, split: str) -> int:
        """How many distinct items the split has."""
        ...

    def item(self, split: str, seed: int, index: int) -> Item:
        """The item at `index` of the stream that `seed` orders; defined for every index >= 0."""
        ...


class ListItems:
    """Items in memory. A seed orders them anew for each pass; validation and test keep the order they were given in."""

    def __init__(self, splits: Mapping[str, Sequence[Item]], *, advice: str = "") -> None:
        """Hold the items of each split; `advice` is given to who asks for a split that there is not.

        Raises: DataError if a split is empty.
        """
        for split, items in splits.items():
            if not items:
                raise DataError("prompts", f"{split}: 0 items", "give at least one prompt")
        self._splits, self._advice = {split: tuple(items) for split, items in splits.items()}, advice

    def size(self, split: str) -> int:
        """Number of items in the split."""
        return len(self._of(split))

    def item(self, split: str, seed: int, index: int) -> Item:
        """Pass index // size is a permutation of its own; validation and test are not shuffled."""
        items = self._of(split)
        pass_, place = divmod(index, len(items))
        return items[_permutation(len(items), seed, pass_)[place] if split == "train" else place]

    def all(self) -> list[Item]:
        """Every item once, whatever splits it is in."""
        return list({id(item): item for items in self._splits.values() for item in items}.values())

    def _of(self, split: str) -> tuple[Item, ...]:
        if split not in self._splits:
            raise DataError("split", split, f"choose one of {', '.join(self._splits)}{self._advice}")
        return self._splits[split]


@lru_cache(maxsize=128)  # a vector environment's rows each have a seed of their own
def _permutation(size: int, seed: int, pass_: int) -> np.ndarray:
    return np.random.default_rng([seed, pass_]).permutation(size)
