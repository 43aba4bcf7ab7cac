"""What all gates share: how one says what it weighs, and how it checks a setting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeVar

from torch import Tensor

from rlgkd.errors import SettingError

Term = Literal["policy", "divergence"]
Weights = tuple[Tensor | None, Tensor | None]
"""The weights of the policy term and of the divergence term, each [B, L] or [B, 1]; None is 1."""
Gate = Callable[..., Weights]
G = TypeVar("G", bound=Gate)


def weighs(*terms: Term, mean: str = "") -> Callable[[G], G]:
    """Decorate a gate with the terms that it weighs and over what the mean of these weights stays 1; "" is nothing."""

    def mark(function: G) -> G:
        function.terms = terms  # type: ignore[attr-defined]
        function.mean = mean  # type: ignore[attr-defined]
        return function

    return mark


def check_range(field: str, value: float, least: float, most: float = float("inf")) -> None:
    """Refuse a value outside [least, most], and one that is not finite.

    Raises: SettingError.
    """
    if not (least <= value <= most and math.isfinite(value)):
        remedy = f"give {least:g} or more" if most == float("inf") else f"give a number in [{least:g}, {most:g}]"
        remedy = "give a finite number" if least == -float("inf") else remedy
        raise SettingError(field, value, remedy)
