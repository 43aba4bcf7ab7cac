"""Where the labels of a plot's points go: beside their point, on no other point or label and, if it can be, on no line.

Greedy: a label takes the cheapest of its places around the point, given those that were placed before it. All lengths
are in one unit, y upwards; a box is (left, bottom, right, top).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from rlgkd.statistics import Floats

MARKER = 5.0
"""Half the width of a point."""
GAP = 3.0
"""Between a point and a label beside it."""
REACH = (0.0, 7.0, 14.0, 24.0, 36.0, 50.0, 70.0)
"""How much farther away a label may go."""
TURNS = 16
OUTSIDE, COVERED, MISTAKEN, CROSSED, ASIDE = 1000.0, 100.0, 12.0, 6.0, 0.4
"""The costs of leaving the plot, of each point or label that is covered, of being nearer to another point than to its
own, of each line that is crossed, and of a unit away."""


def places(points: Floats, sizes: Sequence[tuple[float, float]], lines: Floats, room: Floats) -> Floats:
    """The middle of each point's label: [N, 2].

    `points` [N, 2]; `sizes` are the labels' widths and heights, `lines` [L, 4] the boxes of what should not be crossed,
    and `room` [4] is the box that labels should not leave.
    """
    taken = np.concatenate([points - MARKER, points + MARKER], axis=1)
    found = np.empty_like(points)
    for row, size in enumerate(sizes):
        half = np.array(size) / 2

        def cost(place: tuple[Floats, float], row: int = row, half: Floats = half, taken: Floats = taken) -> float:
            middle, away = place
            box = np.concatenate([middle - half, middle + half])
            outside = (box[:2] < room[:2]).any() or (box[2:] > room[2:]).any()
            mistaken = np.hypot(*(points - middle).T).argmin() != row
            met = COVERED * _met(box, taken) + CROSSED * _met(box, lines)
            return float(OUTSIDE * outside + MISTAKEN * mistaken + met + ASIDE * away)

        found[row], _ = min(_around(points[row], half), key=cost)
        taken = np.concatenate([taken, [[*(found[row] - half), *(found[row] + half)]]])
    return found


def _around(point: Floats, half: Floats) -> Iterator[tuple[Floats, float]]:
    """Middles of a label around its point, right of it first, each with how far it is moved away."""
    for away in REACH:
        for angle in 2 * math.pi / TURNS * np.arange(TURNS):
            yield point + (half + MARKER + GAP + away) * (math.cos(angle), math.sin(angle)), away


def _met(box: Floats, boxes: Floats) -> int:
    """How many of the boxes it meets."""
    inside = (boxes[:, 0] < box[2]) & (boxes[:, 2] > box[0]) & (boxes[:, 1] < box[3]) & (boxes[:, 3] > box[1])
    return int(inside.sum())
