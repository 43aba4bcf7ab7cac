"""What an update changes besides the student: a teacher that follows it, and an alpha that holds a divergence."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from rlgkd.agents.state import TrainingState
from rlgkd.errors import ModelError
from rlgkd.lm.copies import copy_sharing_frozen
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.schedule import steered


@dataclass(frozen=True)
class FollowingTeacher:
    """A teacher that is an exponential average of the student's past weights."""

    student: LanguageModel
    teacher: LanguageModel
    decay: float
    """Share of the teacher that stays at each step."""

    def __post_init__(self) -> None:
        """Refuse a teacher of another shape, which could not be an average of the student."""
        ours, theirs = ([p.shape for p in lm.module.parameters()] for lm in (self.student, self.teacher))
        if ours != theirs:
            remedy = "its shape is not the student's; give the student's start as teacher"
            raise ModelError("teacher_decay", "teacher", remedy)

    def as_it_is(self) -> LanguageModel:
        """A copy of the teacher that stays where it is now."""
        return copy_sharing_frozen(self.teacher) if self._shared else copy.deepcopy(self.teacher)

    @property
    def _shared(self) -> bool:
        """Whether the teacher is the student itself, which reads more perhaps."""
        return self.teacher.module is self.student.module

    @torch.no_grad()
    def step(self) -> None:
        """Move the teacher towards the student, after a step of the optimizer."""
        if self._shared:
            return
        for old, new in zip(self.teacher.module.parameters(), self.student.module.parameters(), strict=True):
            old.lerp_(new, 1.0 - self.decay)


@dataclass(frozen=True)
class AlphaSteering:
    """Moves alpha so that the divergence on on-policy texts stays at its target."""

    target: float
    """In nats."""
    rate: float
    """The most that the log-odds of alpha move."""

    def step(self, state: TrainingState, *, alpha: float, divergence: float) -> None:
        """Set the next update's alpha from this update's alpha and divergence."""
        state.alpha = steered(alpha, divergence, self.target, self.rate)
