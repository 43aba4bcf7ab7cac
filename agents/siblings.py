"""Gives each of the student's texts a right text of the same group, for a teacher that reads one (SDPO).

The best other text of the group whose reward says that it is right, of equals the first. A text without one has no
divergence in this update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rlgkd.errors import DataError
from rlgkd.lm.mixture import Scorer
from rlgkd.lm.own_format import as_read_by
from rlgkd.types import SIBLING, Item, Trajectory


def with_siblings(
    trajectories: Sequence[Trajectory], reader_of: Callable[[Item], Scorer], *, group_size: int, right_from: float
) -> tuple[list[Trajectory], tuple[int, ...]]:
    """The texts whose items have their sibling in the column SIBLING, and the rows of those that have none.

    Args:
        trajectories: All on-policy, the samples of each prompt after one another.
        reader_of: The teacher of an item: what it cannot read with the sibling, since it is too long or has a special
            token's text in it, has none.
        group_size: Samples of each prompt.
        right_from: The reward from which a text is right; one whose reward failed is not.
    """
    found: list[Trajectory] = []
    without: list[int] = []
    for start in range(0, len(trajectories), group_size):
        group = trajectories[start : start + group_size]
        right = [t for t in group if t.score.reward >= right_from]  # false for NaN
        best_first = sorted(right, key=lambda t: -t.score.reward)
        for row, t in enumerate(group, start):
            sibling = next((other for other in best_first if other is not t), None)
            taught = None if sibling is None else _with_sibling(t, sibling.transcript, reader_of(t.item))
            if taught is None:
                without.append(row)
            found.append(t if taught is None else taught)
    return found, tuple(without)


def _with_sibling(t: Trajectory, text: str, teacher: Scorer) -> Trajectory | None:
    item = dataclasses.replace(t.item, columns={**t.item.columns, SIBLING: text})
    taught = dataclasses.replace(t, item=item)
    try:
        as_read_by(teacher, [taught])
    except DataError:
        return None
    return taught
