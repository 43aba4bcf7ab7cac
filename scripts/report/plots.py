"""The plots of a report, as inline SVG in the page's own colours: curves of a run, and before, after and teacher."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup

from rlgkd.scripts.report.metrics import ARROW, Floats, Row, compact, thousands, three, visible

if TYPE_CHECKING:  # matplotlib is imported where it draws: the terminal's table does without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROLES: Final = (
    "ink", "muted", "line", "before", "after", "teacher", "card", "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7",
)  # fmt: skip
COLOURS: Final = {role: f"#0a0b{number:02x}" for number, role in enumerate(_ROLES)}

_PANELS: Final = (
    ("rollout/ep_rew_mean", "Reward", "per text"),
    ("train/divergence", "Divergence to the teacher", "nats/token"),
    ("rollout/ep_len_mean", "Length", "tokens per text"),
    ("train/entropy", "Entropy", "nats"),
    ("train/alpha", "Alpha", "weight of the divergence"),
)


def curves(progress: Mapping[str, Floats]) -> list[dict[str, object]]:
    """Small multiples over the generated tokens, of what has two values or more; alpha only where it moved."""
    axis, x = "tokens", progress.get("time/total_timesteps", np.empty(0))
    if not np.isfinite(x).any():
        axis, x = "updates", progress.get("time/iterations", np.empty(0))
    if not np.isfinite(x).any():
        x = np.arange(1.0, 1 + max((len(column) for column in progress.values()), default=0))
    panels: list[dict[str, object]] = []
    for column, label, unit in _PANELS:
        y = progress.get(column, np.full(len(x), math.nan))
        known = np.isfinite(x) & np.isfinite(y)
        if known.sum() < 2 or (column == "train/alpha" and np.ptp(y[known]) == 0):
            continue
        smooth = smoothed(y[known])
        ends = f"{three(smooth[0])} {ARROW} {three(smooth[-1])}"
        alt = f"{label} ({unit}) over {thousands(x[known][-1])} {axis}: smoothed, from {compact(smooth[0])} to "
        alt += f"{compact(smooth[-1])}; raw values between {compact(y[known].min())} and {compact(y[known].max())}."
        with style():
            svg = inline_svg(_panel(x[known], y[known], smooth, axis), f"curve{len(panels)}", alt)
        panels.append({"label": label, "unit": unit, "ends": ends, "svg": svg})
    return panels


def _panel(x: Floats, y: Floats, smooth: Floats, axis: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(400 / 72, 210 / 72))
    axes = figure.add_axes((0.115, 0.19, 0.865, 0.77))
    bare(axes)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
    axes.plot(x, y, color=COLOURS["after"], alpha=0.3, linewidth=0.9)
    axes.plot(x, smooth, color=COLOURS["after"], linewidth=2.2)
    axes.plot(x[-1:], smooth[-1:], "o", color=COLOURS["after"], markersize=5)
    axes.set_xlabel(axis, color=COLOURS["muted"], labelpad=3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    return figure


def dumbbells(found: list[Row]) -> list[dict[str, object]]:
    """Before, after and teacher on one scale, for what lies in [0, 1]; drawn for wide pages and for phones."""
    shown = [row for row in found if (row.metric.share or not row.metric.unit) and _within_one(row)]
    if not shown:
        return []
    told = [f"{visible(row.metric.label)} {row.sentence}" for row in shown]
    alt = f"Before, after and teacher on a scale from 0 to 1. {'; '.join(told)}."
    with style():
        return [
            {"kind": kind, "svg": inline_svg(_dumbbell(shown, width), f"dumbbell-{kind}", alt)}
            for kind, width in (("wide", 1030), ("narrow", 330))
        ]


def _within_one(row: Row) -> bool:
    means = [score.mean for score in (row.before, row.after, row.teacher) if math.isfinite(score.mean)]
    return bool(means) and all(0 <= mean <= 1 for mean in means)


def _dumbbell(shown: list[Row], width: int) -> Figure:
    """One line for each measure. On a wide page its name stands left of it and its values right, else above it."""
    from matplotlib.figure import Figure

    narrow = width < 600
    step, up, foot = (52, 15, 26) if narrow else (36, -4, 26)
    height = step * len(shown) + foot
    left, right = (8, 8) if narrow else (150, 140)
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((left / width, foot / height, 1 - (left + right) / width, 1 - foot / height))
    bare(axes)
    axes.set(xlim=(0, 1), ylim=(step * len(shown), 0), yticks=[], xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.8)
    pixel = 1 / (width - left - right)
    for line, row in enumerate(shown):
        y, label = line * step + (35 if narrow else step / 2), visible(row.metric.label)[: 26 if narrow else 20]
        before, after, teacher = row.before, row.after, row.teacher
        way = f" {ARROW} ".join(row.metric.value(s.mean) for s in (before, after) if math.isfinite(s.mean))
        ends = (0.0, 1.0) if narrow else (-left * pixel, 1 + right * pixel)
        boxed: dict[str, Any] = {
            "bbox": {"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1.5},
            "parse_math": False,
        }
        axes.text(ends[0], y - up, label, color=COLOURS["ink"], va="baseline", **boxed)
        axes.text(ends[1], y - up, way, color=COLOURS["muted"], ha="right", va="baseline", **boxed)
        bar: dict[str, Any] = {"clip_on": False, "solid_capstyle": "round"}
        axes.plot([0, 1], [y, y], color=COLOURS["line"], linewidth=1.2)
        axes.plot([before.mean, after.mean], [y, y], color=COLOURS["after"], alpha=0.4, linewidth=6, **bar)
        for score, colour in ((before, "before"), (teacher, "teacher"), (after, "after")):
            edges = np.clip([score.low, score.high], 0, 1)
            axes.plot(edges, [y, y], color=COLOURS[colour], linewidth=1.6, marker="|", markersize=10, **bar)
        ring: dict[str, Any] = {"color": COLOURS["card"], "clip_on": False, "zorder": 3}
        axes.plot([teacher.mean], [y], "D", mec=COLOURS["teacher"], mew=2, markersize=7.5, **ring)
        axes.plot([before.mean], [y], "o", mec=COLOURS["before"], mew=2.2, markersize=9, **ring)
        axes.plot(
            [after.mean], [y], "o", mec=COLOURS["after"], mew=1, markersize=10, **ring | {"color": COLOURS["after"]}
        )
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    return figure


def bare(axes: Axes) -> None:
    """No frame, no ticks, no ground: the page's own shows through."""
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=COLOURS["muted"], pad=4)
    axes.set_axisbelow(True)
    axes.figure.patch.set_visible(False)


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults whatever a matplotlibrc says, text that stays text, ids that repeat; then as it was."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rlgkd", "font.size": 11})
        yield


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an inline <svg>: its colours and fonts the page's, its ids its own, no date, `alt` as its label."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(style|metadata)\b.*?</\1>", "", text, flags=re.DOTALL)  # a style would reach the whole page
    used = set(re.findall(r"#([\w.-]+)(?=[\")])", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r"font(-size|-family)?: [^;\"]*;? ?", "", text)
    for colour, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = Markup('<svg {} role="img" aria-label="{}" xmlns:xlink="http://www.w3.org/1999/xlink">')
    body = re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).replace("<defs>\n</defs>\n", "")
    return head.format(Markup(view[0]), alt) + Markup(body)


def smoothed(y: Floats) -> Floats:
    """A Gaussian mean around each point, of a width that is a fraction of the run: no lag, and flat where y is flat."""
    sigma = len(y) / 40
    if sigma < 0.3:
        return y
    reach = min(math.ceil(3 * sigma), (len(y) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smooth: Floats = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
    return smooth
