"""The plots of a comparison, as inline SVG: frontier, curves, ways through the divergence.

A cell has one colour, marker and dash everywhere, so that a reader can tell cells apart by any of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup

from rlgkd.scripts.report.formatting import compact, thousands, visible
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.report.metrics import Metric
from rlgkd.scripts.report.svg import COLOURS, inline_svg, smoothed, strip_frame
from rlgkd.statistics import Floats, Interval

if TYPE_CHECKING:  # see rlgkd.scripts.report.svg
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS: Final = "osD^vPX*"
SIGNS: Final = "●■◆▲▼✚✖★"
"""The markers as characters, for the legend."""
DASHES: Final = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
WIDTH, HEIGHT = 400, 260
GRID_POINTS = 120
"""Points of a curve that is a mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The colour, marker and dash of a cell."""

    label: str
    number: int

    @property
    def colour(self) -> str:
        """One of the eight colours that colour-blind readers tell apart (Okabe and Ito), in the page's shade."""
        return COLOURS[f"c{self.number % 8}"]

    @property
    def marker(self) -> str:
        """Its marker, as matplotlib names it."""
        return MARKERS[self.number % len(MARKERS)]

    @property
    def sign(self) -> str:
        """Its marker as a character."""
        return SIGNS[self.number % len(SIGNS)]

    @property
    def dash(self) -> Any:
        """Its line style, as matplotlib takes it."""
        return DASHES[self.number % len(DASHES)]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A cell on the frontier: two means with their intervals."""

    label: str
    x: Interval
    y: Interval
    look: Look | None
    """None for an untrained model: the teacher and the start."""

    @property
    def colour(self) -> str:
        """The cell's colour, or that of an untrained model."""
        return self.look.colour if self.look else COLOURS["teacher" if self.label == "teacher" else "before"]

    @property
    def marker(self) -> str:
        """The cell's marker, or that of an untrained model."""
        return self.look.marker if self.look else ("D" if self.label == "teacher" else "o")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of a cell: its value at x, and the least and the greatest of its seeds."""

    look: Look | None
    """None for an untrained model."""
    label: str
    x: Floats
    y: Floats
    low: Floats
    high: Floats

    @property
    def end(self) -> float:
        """The last known value."""
        known = self.y[np.isfinite(self.y)]
        return float(known[-1]) if len(known) else math.nan


def average_over_seeds(
    label: str, look: Look | None, runs: Sequence[tuple[Any, Any]], *, smooth: bool = True
) -> Line | None:
    """Return the mean and the range over seeds of the curves (x, y) of each; None if no value is known.

    The curves are interpolated at common points, since updates of different seeds end at different tokens.
    """
    curves = []
    for xs, ys in runs:
        x, y = (np.array([to_float(value) for value in values], dtype=np.float64) for values in (xs, ys))
        size = min(len(x), len(y))
        known = np.isfinite(x[:size]) & np.isfinite(y[:size])
        if known.any():
            x, y = x[:size][known], y[:size][known]
            curves.append((x, smoothed(y) if smooth else y))
    if not curves:
        return None
    first = max(x[0] for x, _ in curves)
    last = min(x[-1] for x, _ in curves)
    grid = np.linspace(first, last, GRID_POINTS) if last > first and smooth else curves[0][0]
    table = np.array([np.interp(grid, x, y) for x, y in curves])
    return Line(look=look, label=label, x=grid, y=table.mean(axis=0), low=table.min(axis=0), high=table.max(axis=0))


def draw_frontier(points: Sequence[Point], x: Metric, y: Metric, name: str) -> Markup:
    """Draw each cell's point with its intervals in both directions."""
    figure, axes = _figure()
    points = [point for point in points if math.isfinite(point.x.mean) and math.isfinite(point.y.mean)]
    for point in points:
        bar: dict[str, Any] = {"color": point.colour, "linewidth": 1.4, "solid_capstyle": "butt"}
        axes.plot([point.x.low, point.x.high], [point.y.mean, point.y.mean], **bar)
        axes.plot([point.x.mean, point.x.mean], [point.y.low, point.y.high], **bar)
        fill = point.colour if point.look else COLOURS["card"]
        mark: dict[str, Any] = {"mec": point.colour, "mew": 1.8, "color": fill, "markersize": 8, "zorder": 3}
        axes.plot([point.x.mean], [point.y.mean], point.marker, **mark)
    axes.margins(0.08, 0.1)
    axes.set_xlabel(_with_unit(x), color=COLOURS["muted"], labelpad=3)
    _name_vertical_axis(axes, y)
    axes.xaxis.set_major_formatter(lambda value, _: _tick(x, value))
    means = "; ".join(f"{p.label}: {x.value(p.x.mean)}, {y.value(p.y.mean)}" for p in points)
    return inline_svg(figure, name, f"{y.label} against {x.label} with 95% intervals. {visible(means)}.")


def draw_lines(
    lines: Sequence[Line], x: str, y: Metric, name: str, *, tick: Callable[[float], str] = thousands
) -> Markup:
    """Draw curves of cells, with the range of their seeds as a band."""
    figure, axes = _figure()
    for line in lines:
        known = np.isfinite(line.x) & np.isfinite(line.y)
        if not known.any():
            continue
        xs, ys = line.x[known], line.y[known]
        colour = line.look.colour if line.look else COLOURS["muted"]
        if len(line.x) > 1:
            axes.fill_between(xs, line.low[known], line.high[known], color=colour, alpha=0.16, linewidth=0)
        axes.plot(xs, ys, color=colour, linewidth=1.9, ls=line.look.dash if line.look else ":")
        axes.plot(xs[-1:], ys[-1:], line.look.marker if line.look else "o", color=colour, markersize=5.5)
    axes.set_xlabel(x, color=COLOURS["muted"], labelpad=3)
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    _name_vertical_axis(axes, y)
    ends = "; ".join(f"{line.label} {y.value(line.end)}" for line in lines)
    return inline_svg(figure, name, f"{y.label} over {x}, at the end: {visible(ends)}.")


def draw_path(x: Floats, series: Mapping[str, Floats], look: Look, name: str, unit: str) -> Markup:
    """Draw measures in [0, 1] of one cell along its way through the divergence, from the ring to the filled point.

    The first of the series is the reward, in the cell's colour.
    """
    figure, axes = _figure()
    ends = []
    for number, (label, y) in enumerate(series.items()):
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            continue
        colour = look.colour if number == 0 else COLOURS["ink" if number == 1 else "muted"]
        xs, ys = smoothed(x[known]), smoothed(y[known])
        axes.plot(xs, ys, color=colour, linewidth=2, ls=DASHES[number % len(DASHES)])
        axes.plot(xs[:1], ys[:1], "o", mec=colour, mew=1.6, color=COLOURS["card"], markersize=6)
        axes.plot(xs[-1:], ys[-1:], "o", color=colour, markersize=6)
        axes.annotate(
            label,
            (xs[-1], ys[-1]),
            xytext=(0, 7 if number == 0 else -13),
            textcoords="offset points",
            ha="center",
            color=colour,
            parse_math=False,
        )
        ends.append(f"{label} from {compact(ys[0])} to {compact(ys[-1])}")
    axes.margins(0.1, 0.14)
    axes.set_title("from 0 to 1", loc="left", x=-0.12, color=COLOURS["muted"], pad=10)
    axes.set_xlabel(unit, color=COLOURS["muted"], labelpad=3)
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.yaxis.set_major_formatter(lambda value, _: compact(value))
    return inline_svg(figure, name, f"{visible(look.label)}, along {unit}: {'; '.join(map(visible, ends))}.")


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes((0.125, 0.165, 0.85, 0.745))
    strip_frame(axes)
    axes.grid(color=COLOURS["line"], linewidth=0.8)
    return figure, axes


def _name_vertical_axis(axes: Axes, y: Metric) -> None:
    """Put the vertical axis's name above it, and write its values in its unit."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(_with_unit(y), loc="left", x=-0.12, color=COLOURS["muted"], pad=10, parse_math=False)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: _tick(y, value))


def _with_unit(metric: Metric) -> str:
    unit = metric.unit or ("%" if metric.share else "")
    return f"{metric.label}, {unit}" if unit else metric.label


def _tick(metric: Metric, value: float) -> str:
    return compact(100 * value) if metric.share else compact(value)
