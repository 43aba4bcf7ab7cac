"""Held-out measures while the cells of a comparison trained, over tokens and over seconds of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlgkd.scripts._figures import COLOURS, plain, save_png
from rlgkd.scripts.comparison.grid import Cell, Grid
from rlgkd.scripts.comparison.run_cell import MEASURED, rounded
from rlgkd.scripts.report.lenient import to_float
from rlgkd.scripts.runs.course import TOKENS
from rlgkd.scripts.runs.folder import EVALUATIONS, TIMES
from rlgkd.scripts.runs.tables import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECONDS = "seconds"
OF_TRAINING = ("time/sampling", "time/update")
"""Columns of times.csv: an evaluation is no part of training."""
DASHES = ("-", "--", ":", "-.")

Curve = Mapping[str, Sequence[float | None]]
"""`tokens`, `seconds` and each measure, at multiples of the grid's `eval_every` tokens."""


def held_out_curve(cell: Cell, grid: Grid, folder: Path) -> dict[str, list[float | None]]:
    """Return the held-out measures while a cell trained, means over the seeds that are there; empty if none is.

    A seed measures some tokens later than another, and once more where a stage ends: each one's are read off on
    straight lines between its measurements.
    """
    at = np.arange(0, grid.base.tokens + 1, grid.base.eval_every)
    seeds = []
    for seed in grid.seeds:
        run = folder / cell.run_folder(seed)
        if not (run / MEASURED).is_file():  # of one that still trains the last measures are not those at the end
            continue
        columns = _columns(run / EVALUATIONS)
        own = {name: np.interp(at, columns[TOKENS], values) for name, values in columns.items() if "/" not in name}
        if (run / TIMES).is_file():
            times = _columns(run / TIMES)
            spent = np.cumsum(np.nansum([times[name] for name in OF_TRAINING], axis=0))
            own[SECONDS] = np.interp(at, [0.0, *times[TOKENS]], [0.0, *spent])
        seeds.append(own)
    if not seeds:
        return {}
    shared = [name for name in seeds[0] if all(name in curve for curve in seeds)]
    return {"tokens": rounded(at)} | {name: rounded(np.mean([c[name] for c in seeds], axis=0)) for name in shared}


def held_out_curves(grid: Grid, folder: Path) -> dict[str, dict[str, list[float | None]]]:
    """Return the curve of each cell that has one, by its name."""
    curves = {cell.name: held_out_curve(cell, grid, folder) for cell in grid.cells}
    return {name: curve for name, curve in curves.items() if curve}


def _columns(file: Path) -> dict[str, list[float]]:
    names, rows = read_rows(file)
    return {name: [to_float(row[number]) for row in rows] for number, name in enumerate(names)}


def at_seconds(curve: Curve, measure: str, seconds: float) -> float:
    """Return a measure after so many seconds of training, on straight lines; what it was last after the curve's end."""
    return float(np.interp(seconds, np.array(curve[SECONDS], float), np.array(curve[measure], float)))


def draw_curves(curves: Mapping[str, Curve], measures: Mapping[str, str], picture: Path) -> None:
    """Draw each measure (name -> label) over tokens in the first row of panels, over seconds in the second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(measures), 6.4), layout="constrained")
    panels = np.atleast_2d(figure.subplots(2, len(measures), squeeze=False))
    for row, over in enumerate(("tokens", SECONDS)):
        for axes, (measure, label) in zip(panels[row], measures.items(), strict=True):
            _draw_panel(axes, curves, over, measure)
            plain(axes, over, label)
    panels[0][0].legend(fontsize=7, frameon=False)
    save_png(figure, picture)


def _draw_panel(axes: Axes, curves: Mapping[str, Curve], over: str, measure: str) -> None:
    for number, (name, curve) in enumerate(curves.items()):
        if over in curve and measure in curve:
            look: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "ls": DASHES[number // len(COLOURS) % len(DASHES)],
            }
            axes.plot(np.array(curve[over], float), np.array(curve[measure], float), label=name, lw=1.4, **look)
