"""Generalised knowledge distillation: Eq. 5 at alpha = 1 (Agarwal et al., ICLR 2024, arXiv 2306.13649, Algorithm 1)."""

from __future__ import annotations

from typing import Annotated

from rlgkd.agents.algorithm import TextAlgorithm
from rlgkd.agents.config import AlgorithmConfig
from rlgkd.objective import Objective
from rlgkd.ops.schedule import Schedule
from rlgkd.settings import Moving, Scheduled


class DistillConfig(AlgorithmConfig):
    """Alpha is 1: the divergence alone."""

    owner = "Distill"
    fixed = frozenset({"alpha"})

    objective: Objective = Objective(reduction="sequence_mean")
    alpha: Annotated[Moving, Scheduled()] = Schedule(1.0)
    """Weight of the divergence in Eq. 5, which is always 1 here."""


class Distill(TextAlgorithm):
    """Descends lambda E_{y~student} D + (1-lambda) E_{y~data} D; the task's reward is logged and not trained on."""

    Config = DistillConfig
