"""Generalised knowledge distillation: Eq. 5 at alpha = 1 (Agarwal et al., ICLR 2024, arXiv 2306.13649, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rlgkd.agents.algorithm import TextAlgorithm


class Distill(TextAlgorithm):
    """Descends lambda E_{y~student} D + (1-lambda) E_{y~data} D; the task's reward is logged and not trained on."""

    preset: ClassVar[Mapping[str, Any]] = {"alpha": 1.0}
