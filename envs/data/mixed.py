"""Items of several sources in fixed shares, each with the name of its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from rlgkd.envs.data.sources import Items
from rlgkd.errors import SettingError
from rlgkd.types import Item

SOURCE: Final = "source"
"""The column that has the name of an item's source, unless the data has one of that name."""


class MixedItems:
    """Items of several sources, by turns: of each as many in a round as its share, spread over the round."""

    def __init__(self, sources: Mapping[str, Items], shares: Mapping[str, int]) -> None:
        """Take the sources and their shares, which are whole numbers of 1 or more, by the same names."""
        self._sources = dict(sources)
        self._shares = {name: shares[name] for name in sources}
        places = sorted(((n + 0.5) / share, name, n) for name, share in self._shares.items() for n in range(share))
        self._round = [(name, n) for _, name, n in places]
        """For each place of a round its source, and which of its share it is."""

    def size(self, split: str) -> int:
        """Return the length of the stream until one of the sources has given all its items, at least one round."""
        rounds = min(source.size(split) // self._shares[name] for name, source in self._sources.items())
        return max(1, rounds) * len(self._round)

    def item(self, split: str, seed: int, index: int) -> Item:
        """Return the item at `index` of the stream; each source goes on in its own order."""
        round_, place = divmod(index, len(self._round))
        name, n = self._round[place]
        item = self._sources[name].item(split, seed, round_ * self._shares[name] + n)
        own = item.columns.get(SOURCE)
        columns = {**item.columns, SOURCE: name if own is None else own}
        return dataclasses.replace(item, key=f"{name}/{item.key}", columns=columns)


def mixed_items(data: Any, shares: Any, read: Callable[[Any], Items]) -> MixedItems:
    """Return the items of a mapping of names to data, each of which `read` reads.

    Raises: SettingError for shares that are no whole numbers of 1 or more, or whose names are not those of the data.
    """
    if not isinstance(data, Mapping) or not data:
        raise SettingError("shares", shares, "give data as a mapping of the same names: {math: math.jsonl, ...}")
    if not isinstance(shares, Mapping) or set(shares) != set(data):
        raise SettingError("shares", shares, f"give a share for each of {', '.join(map(str, data))}")
    for name, share in shares.items():
        if type(share) is not int or share < 1:
            raise SettingError("shares", {name: share}, "give whole numbers of 1 or more: so many items in a round")
    return MixedItems({str(name): read(one) for name, one in data.items()}, {str(n): s for n, s in shares.items()})
