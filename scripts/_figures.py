"""How figures of docs look: colours that colour-blind readers tell apart, a frame of two sides, files that repeat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, AMBER, SKY, GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", AMBER, SKY, "#000000", "#999999")


def plain(axes: Axes, x: str = "", y: str = "") -> None:
    """Draw a frame of two sides and small numbers, and what the axes show where that is given."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if x:
        axes.set_xlabel(x, fontsize=8)
    if y:
        axes.set_ylabel(y, fontsize=8)


def save_png(figure: Figure, picture: Path) -> None:
    """Write a figure without matplotlib's version, so that the same numbers give the same file."""
    figure.savefig(picture, dpi=110, metadata={"Software": None})
