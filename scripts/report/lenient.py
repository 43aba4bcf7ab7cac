"""Values from JSON, YAML and CSV files that may be damaged: what is missing or broken reads as NaN or as empty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlgkd.statistics import Interval


def to_float(value: object) -> float:
    """Return a number, or NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def to_mapping(value: object) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def to_list(value: object) -> list[Any]:
    """Return the value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def to_interval(value: object) -> Interval:
    """Return the interval that {"mean", "low", "high"} or a bare number stands for."""
    if isinstance(value, Mapping):
        return Interval(to_float(value.get("mean")), to_float(value.get("low")), to_float(value.get("high")))
    return Interval(to_float(value))
