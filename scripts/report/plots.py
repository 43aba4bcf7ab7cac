"""The plots of a run's report: curves over training, and before, after and teacher on one scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rlgkd.scripts.report.formatting import ARROW, compact, thousands, three_digits, visible
from rlgkd.scripts.report.metrics import MeasureRow, metric_of
from rlgkd.scripts.report.svg import COLOURS, Panel, inline_svg, smoothed, strip_frame, style
from rlgkd.statistics import Floats

if TYPE_CHECKING:  # see rlgkd.scripts.report.svg
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES: Final = (
    ("rollout/ep_rew_mean", "Reward", "per text"),
    ("train/divergence", "Divergence to the teacher", "nats/token"),
    ("rollout/ep_len_mean", "Length", "tokens per text"),
    ("train/entropy", "Entropy", "nats"),
    ("train/alpha", "Alpha", "weight of the divergence"),
    ("train/mismatch", "Mismatch of sampling and training", "nats/token"),
)
"""Column of progress.csv, label, unit."""
OFF_POLICY_REWARD: Final = "Reward of the texts it learned from"
POINTS_PER_INCH: Final = 72
WIDE, NARROW = 1030, 330
"""Widths of the dumbbell plot in points, for a wide page and for a phone."""


def training_curves(
    progress: Mapping[str, Floats], stages: Sequence[float] = (), *, off_policy: bool = False
) -> list[Panel]:
    """Draw each curve that has two values or more, over bands of the stages; alpha only if it changed.

    Args:
        progress: Columns of progress.csv.
        stages: Tokens at which each stage began; none for a run without stages.
        off_policy: Whether all texts came from data or the teacher, so that their reward is not the student's.
    """
    axis, x = x_axis(progress)
    panels: list[Panel] = []
    for column, usual_label, unit in (*_CURVES, *_curves_of_teachers(progress)):
        label = OFF_POLICY_REWARD if off_policy and column == "rollout/ep_rew_mean" else usual_label
        y = progress.get(column, np.full(len(x), math.nan))
        known = np.isfinite(x) & np.isfinite(y)
        if known.sum() < 2 or (column == "train/alpha" and np.ptp(y[known]) == 0):
            continue
        smooth = smoothed(y[known])
        alt = (
            f"{label} ({unit}) over {thousands(x[known][-1])} {axis}: smoothed, from {compact(smooth[0])} to "
            f"{compact(smooth[-1])}; raw values between {compact(y[known].min())} and {compact(y[known].max())}."
        )
        with style():
            figure = _curve_figure(x[known], y[known], smooth, axis, stages)
            svg = inline_svg(figure, f"curve{len(panels)}", alt)
        ends = f"{three_digits(smooth[0])} {ARROW} {three_digits(smooth[-1])}"
        panels.append(Panel(label=label, unit=unit, ends=ends, svg=svg))
    return panels


def _curves_of_teachers(progress: Mapping[str, Floats]) -> Iterator[tuple[str, str, str]]:
    """Yield reward and divergence of each of several teachers, as `_CURVES` has them."""
    for column in progress:
        name, _, measure = column.removeprefix("teacher/").rpartition("/")
        if not column.startswith("teacher/"):
            continue
        if measure == "reward":
            yield column, f"Reward of the texts of {name}", "per text"
        elif measure == "divergence":
            yield column, f"Divergence to {name}", "nats/token"


def held_out_curves(
    evaluations: Mapping[str, Floats],
    measures: Sequence[str],
    *,
    stages: Sequence[float] = (),
    watched: str = "",
    best: float = math.nan,
) -> list[Panel]:
    """Draw these measures of the evaluations on the way, each if it has two values or more, with their intervals.

    The evaluation at `best` tokens is marked in the panel of the measure that is watched.
    """
    axis, x = x_axis(evaluations)
    panels: list[Panel] = []
    for name in dict.fromkeys(measures):
        metric, unknown = metric_of(name), np.full(len(x), math.nan)
        y, low, high = (evaluations.get(column, unknown) for column in (name, f"{name}/low", f"{name}/high"))
        known = np.isfinite(x) & np.isfinite(y)
        if known.sum() < 2:
            continue
        ends = f"{metric.value(y[known][0])} {ARROW} {metric.value(y[known][-1])}"
        alt = f"{metric.label} on held-out prompts over {thousands(x[known][-1])} {axis}: {ends}."
        chosen = known & (x == best) if name == watched else known & False
        if chosen.any():
            alt += f" The best model: {metric.value(y[chosen][0])} at {thousands(best)} {axis}."
        with style():
            figure = _curve_figure(x[known], y[known], y[known], axis, stages)
            axes = figure.axes[0]
            axes.fill_between(x[known], low[known], high[known], color=COLOURS["after"], alpha=0.15, linewidth=0)
            axes.plot(x[known], y[known], "o", color=COLOURS["after"], markersize=3.5)
            axes.plot(x[chosen], y[chosen], "o", color=COLOURS["card"], mec=COLOURS["ink"], mew=2, markersize=9)
            svg = inline_svg(figure, f"heldout{len(panels)}", alt)
        panels.append(Panel(label=metric.label, unit=metric.unit, ends=ends, svg=svg))
    return panels


def x_axis(progress: Mapping[str, Floats]) -> tuple[str, Floats]:
    """Return the unit and the values of the horizontal axis: generated tokens, else updates."""
    for name, column in (("tokens", "time/total_timesteps"), ("updates", "time/iterations")):
        values = progress.get(column, np.empty(0))
        if np.isfinite(values).any():
            return name, values
    longest = max((len(values) for values in progress.values()), default=0)
    return "updates", np.arange(1.0, 1 + longest)


def _curve_figure(x: Floats, y: Floats, smooth: Floats, axis: str, stages: Sequence[float] = ()) -> Figure:
    axes = curve_axes(x[-1], axis, stages)
    axes.plot(x, y, color=COLOURS["after"], alpha=0.3, linewidth=0.9)
    axes.plot(x, smooth, color=COLOURS["after"], linewidth=2.2)
    axes.plot(x[-1:], smooth[-1:], "o", color=COLOURS["after"], markersize=5)
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def curve_axes(end: float, axis: str, stages: Sequence[float] = ()) -> Axes:
    """Return the axes of a new figure for curves over training up to `end`, with bands for the stages."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(400 / POINTS_PER_INCH, 210 / POINTS_PER_INCH))
    axes = figure.add_axes((0.115, 0.19, 0.865, 0.77))
    strip_frame(axes)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
    _draw_stages(axes, stages, end)
    axes.set_xlabel(axis, color=COLOURS["muted"], labelpad=3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    return axes


def _draw_stages(axes: Axes, stages: Sequence[float], end: float) -> None:
    """Draw a band for every second stage, and the number of each over its middle."""
    if len(stages) < 2:
        return
    for number, (begin, last) in enumerate(pairwise([*stages, end]), start=1):
        if number % 2 == 0:
            axes.axvspan(begin, last, color=COLOURS["muted"], alpha=0.12, linewidth=0, zorder=0)
        at: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top", "parse_math": False}
        axes.text((begin + last) / 2, 0.99, str(number), color=COLOURS["muted"], **at)


def dumbbells(rows: Sequence[MeasureRow]) -> dict[str, Any]:
    """Draw before, after and teacher on one scale for the measures in [0, 1]: `wide` for pages, `narrow` for phones."""
    shown = [row for row in rows if (row.metric.share or not row.metric.unit) and _is_within_one(row)]
    if not shown:
        return {}
    courses = "; ".join(f"{visible(row.metric.label)} {row.course}" for row in shown)
    alt = f"Before, after and teacher on a scale from 0 to 1. {courses}."
    with style():
        return {
            kind: inline_svg(_dumbbell_figure(shown, width), f"dumbbell-{kind}", alt)
            for kind, width in (("wide", WIDE), ("narrow", NARROW))
        }


def _is_within_one(row: MeasureRow) -> bool:
    means = [score.mean for score in (row.before, row.after, row.teacher) if math.isfinite(score.mean)]
    return bool(means) and all(0 <= mean <= 1 for mean in means)


def _dumbbell_figure(shown: Sequence[MeasureRow], width: int) -> Figure:
    """Draw one line for each measure, with label and values left and right of it, or above it if it is narrow.

    One unit of the vertical axis is one point of the page, downwards.
    """
    from matplotlib.figure import Figure

    narrow = width == NARROW
    foot = 26  # room for the ticks' labels
    line_height = 52 if narrow else 36
    line_middle = 35 if narrow else line_height / 2
    label_rise = 15 if narrow else -4  # from the line up to the baseline of its label
    most_letters = 26 if narrow else 20
    left, right = (8, 8) if narrow else (150, 140)
    height = line_height * len(shown) + foot
    figure = Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))
    axes = figure.add_axes((left / width, foot / height, 1 - (left + right) / width, 1 - foot / height))
    strip_frame(axes)
    axes.set(xlim=(0, 1), ylim=(line_height * len(shown), 0), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    point = 1 / (width - left - right)
    label_x, values_x = (0.0, 1.0) if narrow else (-left * point, 1 + right * point)
    on_card: dict[str, Any] = {
        "bbox": {"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1.5},
        "parse_math": False,
        "va": "baseline",
    }
    for number, row in enumerate(shown):
        y = number * line_height + line_middle
        label = visible(row.metric.label)[:most_letters]
        means = [score.mean for score in (row.before, row.after) if math.isfinite(score.mean)]
        values = f" {ARROW} ".join(map(row.metric.value, means))
        axes.text(label_x, y - label_rise, label, color=COLOURS["ink"], **on_card)
        axes.text(values_x, y - label_rise, values, color=COLOURS["muted"], ha="right", **on_card)
        _draw_dumbbell(axes, row, y)
    return figure


def _draw_dumbbell(axes: Axes, row: MeasureRow, y: float) -> None:
    """Draw a measure's intervals as thin lines and its means as marks, the way from before to after as a band."""
    before, after, teacher = row.before, row.after, row.teacher
    line: dict[str, Any] = {"clip_on": False, "solid_capstyle": "round"}
    axes.plot([0, 1], [y, y], color=COLOURS["line"], linewidth=1.2)
    axes.plot([before.mean, after.mean], [y, y], color=COLOURS["after"], alpha=0.4, linewidth=6, **line)
    for score, role in ((before, "before"), (teacher, "teacher"), (after, "after")):
        bounds = np.clip([score.low, score.high], 0, 1)
        axes.plot(bounds, [y, y], color=COLOURS[role], linewidth=1.6, marker="|", markersize=10, **line)
    mark: dict[str, Any] = {"clip_on": False, "zorder": 3}
    card = COLOURS["card"]
    axes.plot([teacher.mean], [y], "D", color=card, mec=COLOURS["teacher"], mew=2, markersize=7.5, **mark)
    axes.plot([before.mean], [y], "o", color=card, mec=COLOURS["before"], mew=2.2, markersize=9, **mark)
    axes.plot([after.mean], [y], "o", color=COLOURS["after"], mec=COLOURS["after"], mew=1, markersize=10, **mark)
