"""The gradient of a batch for tests: advantages in one tensor, in which NaN marks a row without a valid reward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlgkd.agents.advantages import Credit
from rlgkd.agents.rollout import Rollout
from rlgkd.agents.update import Means, accumulate_gradient
from rlgkd.lm import LanguageModel
from rlgkd.objective import Objective
from rlgkd.types import Trajectory


def accumulate(
    objective: Objective,
    student: LanguageModel,
    teacher: LanguageModel | None,
    batch: Sequence[Trajectory],
    advantages_BL: Tensor,
    *,
    token_budget: int = 10**6,
    max_new_tokens: int | None = None,
) -> Means:
    """Add the gradient of a batch to the student's and return the means of the batch."""
    credit = Credit(advantages_BL.nan_to_num(nan=0.0), ~advantages_BL.isnan().any(1))
    rollout = Rollout(trajectories=list(batch), student_fraction=objective.student_fraction)
    return accumulate_gradient(
        student,
        teacher,
        objective,
        rollout.split(student, token_budget),
        credit,
        max_new_tokens=max_new_tokens,
    )
