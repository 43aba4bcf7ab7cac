"""Labels of points that lie in a heap: none covers a point or another label, none leaves the plot."""

from __future__ import annotations

import numpy as np
import pytest

from rlgkd.scripts.labels import MARKER, places

ROOM = np.array([0.0, 40.0, 400.0, 240.0])
NONE = np.empty((0, 4))


def boxes(middles: np.ndarray, sizes: list[tuple[float, float]]) -> np.ndarray:
    half = np.array(sizes) / 2
    return np.concatenate([middles - half, middles + half], axis=1)


def meet(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a[:2] < b[2:]).all() and (a[2:] > b[:2]).all())


@pytest.mark.parametrize("spread", [0.0, 2.0, 8.0, 40.0])
@pytest.mark.parametrize("corner", [(60.0, 60.0), (200.0, 140.0), (390.0, 235.0)])
def test_labels_of_a_heap_cover_nothing_and_stay_in_the_plot(spread: float, corner: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    points = np.clip(np.array(corner) + spread * rng.standard_normal((6, 2)), ROOM[:2] + 5, ROOM[2:] - 5)
    sizes = [(8.2 * len(label), 13.0) for label in ("0", "0.25", "0.5", "1", "start", "teacher")]
    labels = boxes(places(points, sizes, NONE, ROOM), sizes)
    dots = np.concatenate([points - MARKER, points + MARKER], axis=1)
    assert not any(meet(label, dot) for label in labels for dot in dots)
    assert not any(meet(a, b) for n, a in enumerate(labels) for b in labels[:n])
    assert (labels[:, :2] >= ROOM[:2]).all() and (labels[:, 2:] <= ROOM[2:]).all()


def test_a_label_keeps_off_the_lines_and_close_to_its_point() -> None:
    point, size = np.array([[200.0, 140.0]]), [(30.0, 13.0)]
    cross = np.array([[150.0, 140.0, 250.0, 140.0], [200.0, 100.0, 200.0, 180.0]])
    (free,), (crossed,) = (places(point, size, lines, ROOM) for lines in (NONE, cross))
    assert (free == [200 + 15 + MARKER + 3, 140]).all()  # right of it
    assert not any(meet(boxes(crossed[None], size)[0], line) for line in cross)
    assert np.abs(crossed - point[0]).max() < 40
