"""Sources of items: the protocol, and the source that holds its items in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np

from rlgkd.errors import DataError
from rlgkd.types import Item


@runtime_checkable
class Items(Protocol):
    """A source of items, by split."""

    def size(self, split: str) -> int:
        """Return how many distinct items the split has."""
        ...

    def item(self, split: str, seed: int, index: int) -> Item:
        """Return the item at `index` of the stream that `seed` orders; defined for every index >= 0."""
        ...


class ListItems:
    """Items in memory. The seed gives `train` a new order in each pass; other splits keep the order of the list."""

    def __init__(self, splits: Mapping[str, Sequence[Item]], *, advice: str = "") -> None:
        """Hold the items of each split; `advice` is shown if an unknown split is requested.

        Raises: DataError if a split is empty.
        """
        for split, items in splits.items():
            if not items:
                raise DataError("prompts", f"{split}: 0 items", "give at least one prompt")
        self._splits = {split: tuple(items) for split, items in splits.items()}
        self._advice = advice

    def size(self, split: str) -> int:
        """Return the number of items in the split."""
        return len(self._items_of(split))

    def item(self, split: str, seed: int, index: int) -> Item:
        """Return the item at `index`: pass index // size of `train` is a permutation of its own."""
        items = self._items_of(split)
        pass_, position = divmod(index, len(items))
        if split == "train":
            position = int(_permutation(len(items), seed, pass_)[position])
        return items[position]

    def all(self) -> list[Item]:
        """Return every item once, in whatever splits it is."""
        return list({id(item): item for items in self._splits.values() for item in items}.values())

    def filtered(self, keep: Callable[[Item], bool]) -> ListItems:
        """Return a source of the items that `keep`, called once for each, accepts; a split without items is no more."""
        kept = {id(item) for item in self.all() if keep(item)}
        splits = {split: [item for item in items if id(item) in kept] for split, items in self._splits.items()}
        return ListItems({split: items for split, items in splits.items() if items}, advice=self._advice)

    def _items_of(self, split: str) -> tuple[Item, ...]:
        if split not in self._splits:
            advice = self._advice or "; or give the data this split too"
            raise DataError("split", split, f"choose one of {', '.join(self._splits)}{advice}")
        return self._splits[split]


@lru_cache(maxsize=128)  # each row of a vector environment has a seed of its own
def _permutation(size: int, seed: int, pass_: int) -> np.ndarray:
    return np.random.default_rng([seed, pass_]).permutation(size)
