"""An agent's settings as a whole, refused where they contradict each other, at any point of their schedules."""

from __future__ import annotations

from typing import Final, Self
from warnings import warn

from pydantic import model_validator

from rlgkd.agents.agent_settings import AgentSettings, RewardSettings
from rlgkd.agents.contradictions import check_combination
from rlgkd.agents.teacher_checks import check_teacher
from rlgkd.objective import Objective
from rlgkd.ops.schedule import Schedule


class AlgorithmConfig(AgentSettings):
    """What every agent takes."""

    owner = "TextAlgorithm"

    def check_teacher(self, teacher: object) -> None:
        """Refuse None for a teacher where these settings need one, and a server or file where they need a model.

        Raises: SettingError.
        """
        check_teacher(self, teacher)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        functions = not (isinstance(self.alpha, Schedule) and isinstance(self.student_fraction, Schedule))
        for step in range(101) if functions else (100, 0):  # a Schedule moves in one direction, so its ends tell
            now = self.objective_at(step / 100)
            Objective(**now.flat())
        check_combination(self)
        if self.objective.estimator == "k3":
            warn("estimator k3 as a loss descends the forward KL, not the reverse; use k2", stacklevel=2)
        return self


CHANGEABLE: Final = frozenset(
    {
        *(f"{name}{part}" for name in ("alpha", "student_fraction") for part in ("", "_end", "_shape")),
        *Objective.declared(),
        *RewardSettings.declared(),
        *("divergence_target", "alpha_rate", "off_policy", "off_policy_from", "mixture", "group_size"),
        *("learning_rate", "epochs", "max_grad_norm", "gradient_norms_every", "agreement_every"),
    }
)
"""Settings that may change while an agent trains (`reconfigure`), as the stages of a run do: no model, no optimizer and
no order of prompts depends on them."""
