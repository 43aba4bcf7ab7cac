"""Matplotlib figures as inline SVG in the page's own colours and fonts, the same bytes for the same figure.

Matplotlib is imported where it draws: the terminal's table does without.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup

from rlgkd.statistics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROLES: Final = (
    *("ink", "muted", "line", "before", "after", "teacher", "card"),
    *("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"),
)
COLOURS: Final = {role: f"#0a0b{number:02x}" for number, role in enumerate(_ROLES)}
"""Role -> a stand-in colour to draw with, which `inline_svg` replaces by the page's CSS variable of that role."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A plot with its caption."""

    label: str
    unit: str = ""
    svg: Markup
    ends: str = ""
    """The first and the last value of a curve, as text."""


@contextmanager
def style() -> Iterator[None]:
    """Draw with matplotlib's defaults whatever a matplotlibrc says, text that stays text, ids that repeat."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rlgkd", "font.size": 11})
        yield


def strip_frame(axes: Axes) -> None:
    """Remove frame, ticks and background, so that the page's own shows through."""
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=COLOURS["muted"], pad=4)
    axes.set_axisbelow(True)
    axes.figure.patch.set_visible(False)


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Return the figure as an <svg> element with ids that begin with `name`, no date, and `alt` as its label."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(style|metadata)\b.*?</\1>", "", text, flags=re.DOTALL)  # a style would reach the whole page
    # Figures of one page share a document: keep only ids that are referred to, and prefix them.
    used = set(re.findall(r"#([\w.-]+)(?=[\")])", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r"font(-size|-family)?: [^;\"]*;? ?", "", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    head = Markup('<svg {} role="img" aria-label="{}" xmlns:xlink="http://www.w3.org/1999/xlink">')
    body = re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).replace("<defs>\n</defs>\n", "")
    return head.format(Markup(view_box[0]), alt) + Markup(body)


def smoothed(y: Floats) -> Floats:
    """Smooth a curve by a Gaussian whose width is a fraction of its length: no lag, and flat where y is flat."""
    sigma = len(y) / 40
    if sigma < 0.3:
        return y
    reach = min(math.ceil(3 * sigma), (len(y) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smooth: Floats = np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")
    return smooth
