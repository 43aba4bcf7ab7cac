"""Numbers and texts as the reports write them."""

from __future__ import annotations

import math
import re
from typing import Final

MINUS: Final = "\N{MINUS SIGN}"
DASH: Final = "\N{EN DASH}"
"""Stands for a value that is not known."""
ARROW: Final = "\N{RIGHTWARDS ARROW}"


def signed(text: str) -> str:
    """Write a number's text with a proper minus sign, and without a sign if it rounds to zero.

    Examples:
        >>> signed("-0.000"), signed("-0.001") == f"{MINUS}0.001"
        ('0.000', True)
    """
    text = re.sub(r"^-(0(?:\.0+)?)(?![\d.])", r"\1", text)
    return text.replace("-", MINUS)


def compact(x: float) -> str:
    """Write three significant digits: `0.412`, `13`, `1.2M`.

    Examples:
        >>> compact(0.41234), compact(13.0), compact(1_234_000.0)
        ('0.412', '13', '1.23M')
    """
    if not math.isfinite(x):
        return DASH
    return signed(f"{x:.3g}") if abs(x) < 1000 else thousands(x)


def three_digits(x: float) -> str:
    """Write three significant digits and keep zeros at the end: `13.0`."""
    return signed(f"{x:#.3g}".rstrip(".")) if 1e-3 <= abs(x) < 1000 else compact(x)


def thousands(x: float) -> str:
    """Write a large number short: `250k`, `1.2M`."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return signed(f"{x / size:.3g}{name}")
    return signed(f"{x:.3g}")


def whole(x: float) -> str | None:
    """Write a whole number with its thousands: `268,800`; None if it is not known."""
    return f"{x:,.0f}" if math.isfinite(x) else None


def visible(text: str) -> str:
    """Replace all but printable ASCII: plot fonts lack the rest, and a terminal obeys control characters."""
    return re.sub(r"[^ -~]+", "?", text)


def duration(seconds: float) -> str:
    """Write a time: `42 s`, `3 min`, `1.5 h`."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 1 else f"{hours:.1f} h"
