"""Labels of points that lie in a heap: none covers a point or another label, none leaves the plot."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rlgkd.scripts.comparison import plots
from rlgkd.scripts.comparison.plots import Look, Point, frontier
from rlgkd.scripts.report.label_placement import MARKER, places
from rlgkd.scripts.report.metrics import METRICS

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


def test_labels_of_a_plot_are_placed_where_its_points_will_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        Point(label=str(n), x=(0.1 * n, 0.1 * n - 3, 4.0), y=(0.9, 0.5, 1.0), look=Look(label="", number=n))
        for n in range(3)
    ]
    found = {}

    def seen(spots: np.ndarray, sizes: object, lines: np.ndarray, room: np.ndarray) -> np.ndarray:
        found.update(spots=spots, lines=lines, room=room)
        return spots

    monkeypatch.setattr(plots, "places", seen)
    svg = frontier(points, METRICS["reverse_kl"], METRICS["reward"], "f")
    drawn = [
        float(x) for x in re.findall(r'<use xlink:href="[^"]*" x="([\d.]+)" y="[\d.]+" style="fill: var\(--c', svg)
    ]
    assert drawn == pytest.approx(list(found["spots"][:, 0]), abs=0.01)
    assert (found["lines"][:, 0] >= found["room"][0]).all() and (found["lines"][:, 2] <= found["room"][2]).all()


def test_a_label_keeps_off_the_lines_and_close_to_its_point() -> None:
    point, size = np.array([[200.0, 140.0]]), [(30.0, 13.0)]
    cross = np.array([[150.0, 140.0, 250.0, 140.0], [200.0, 100.0, 200.0, 180.0]])
    (free,), (crossed,) = (places(point, size, lines, ROOM) for lines in (NONE, cross))
    assert (free == [200 + 15 + MARKER + 3, 140]).all()  # right of it
    assert not any(meet(boxes(crossed[None], size)[0], line) for line in cross)
    assert np.abs(crossed - point[0]).max() < 40
