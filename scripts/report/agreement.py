"""The report's panels on where student and teacher agree, from the columns agreement/ of progress.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rlgkd.scripts.report.formatting import ARROW, thousands, three_digits
from rlgkd.scripts.report.plots import curve_axes, x_axis
from rlgkd.scripts.report.svg import COLOURS, Panel, inline_svg, style
from rlgkd.statistics import Floats

PREFIX: Final = "agreement/"
LINE_STYLES: Final = ("-", "--", ":")
"""Styles of a panel's lines, besides their colours: a reader may not see colours."""
LINE_COLOURS: Final = ("after", "teacher", "before")


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """Some columns on one scale."""

    label: str
    unit: str
    lines: Mapping[str, str]
    """Column without its prefix -> what its line is called."""


_PLOTS: Final = (
    _Plot(
        label="Top 20 tokens shared",
        unit="share",
        lines={
            "top20_shared": "of the tokens",
            "top20_teacher_mass": "teacher's mass on them",
            "top20_student_mass": "student's mass on them",
        },
    ),
    _Plot(
        label="log p teacher \N{MINUS SIGN} log p student",
        unit="nats, mean by third of the text",
        lines={"gap_first_third": "first", "gap_middle_third": "middle", "gap_last_third": "last"},
    ),
    _Plot(
        label="Tokens that the teacher finds likelier",
        unit="share",
        lines={"positive_good": "in better texts", "positive_bad": "in worse texts"},
    ),
    _Plot(
        label="Probability of ending at the last token",
        unit="mean over texts",
        lines={"end_student": "student", "end_teacher": "teacher"},
    ),
    _Plot(
        label="The teacher's entropy",
        unit="nats",
        lines={"teacher_entropy": "whole text", "teacher_entropy_last_third": "last third"},
    ),
    _Plot(
        label="Tail of the log-ratio",
        unit="nats, 99th percentile of its size",
        lines={"gap_p99": "|log p teacher \N{MINUS SIGN} log p student|"},
    ),
)


def agreement_panels(progress: Mapping[str, Floats], stages: Sequence[float] = ()) -> list[Panel]:
    """Draw each plot of which a line has two values or more, over bands of the stages."""
    axis, x = x_axis(progress)
    panels: list[Panel] = []
    for plot in _PLOTS:
        lines = {}
        for column, name in plot.lines.items():
            y = progress.get(PREFIX + column, np.full(len(x), np.nan))
            known = np.isfinite(x) & np.isfinite(y)
            if known.sum() >= 2:
                lines[name] = x[known], y[known]
        if lines:
            panels.append(_panel(plot, lines, axis, stages, f"agreement{len(panels)}"))
    return panels


def _panel(
    plot: _Plot, lines: Mapping[str, tuple[Floats, Floats]], axis: str, stages: Sequence[float], name: str
) -> Panel:
    courses = {line: f"{three_digits(y[0])} {ARROW} {three_digits(y[-1])}" for line, (_, y) in lines.items()}
    end = max(x[-1] for x, _ in lines.values())
    lines_text = "; ".join(f"{line} {course}" for line, course in courses.items())
    alt = f"{plot.label} ({plot.unit}) over {thousands(end)} {axis}: {lines_text}."
    with style():
        axes = curve_axes(end, axis, stages)
        for (line, (x, y)), dashes, colour in zip(lines.items(), LINE_STYLES, LINE_COLOURS, strict=False):
            axes.plot(x, y, dashes, color=COLOURS[colour], linewidth=2, label=line)
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=COLOURS["muted"], fontsize=10, borderpad=0, loc="best")
        figure = axes.get_figure(root=True)
        assert figure is not None
        svg = inline_svg(figure, name, alt)
    first = next(iter(courses.values()))
    return Panel(label=plot.label, unit=plot.unit, ends=first, svg=svg)
