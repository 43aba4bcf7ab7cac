"""The texts of one update: trajectories, and their split into micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rlgkd.agents.micro_batch import MicroBatch, micro_batches
from rlgkd.lm.model import LanguageModel
from rlgkd.types import ON_POLICY, Batch, Trajectory


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The texts of one update, on-policy ones first."""

    trajectories: list[Trajectory] = field(default_factory=list)
    micro_batches: list[MicroBatch] = field(default_factory=list)
    student_fraction: float = 1.0
    """The probability with which its batches, or prompts, were drawn on-policy."""

    @property
    def on_policy(self) -> list[Trajectory]:
        """The trajectories that were sampled with the student."""
        return [t for t in self.trajectories if t.source in ON_POLICY]

    @property
    def longest(self) -> int:
        """Actions of the longest trajectory."""
        return max(t.length for t in self.trajectories)

    def split(self, lm: LanguageModel, token_budget: int, teacher: LanguageModel | None = None) -> Rollout:
        """With micro-batches, if it has none yet."""
        parts = self.micro_batches or list(micro_batches(lm, self.trajectories, token_budget, teacher))
        return dataclasses.replace(self, micro_batches=parts)

    def with_log_probabilities(self, logp_BL: Tensor, lm: LanguageModel) -> Rollout:
        """With other log-probabilities of its actions, in nats; the teacher's states stay."""
        trajectories = []
        for row, t in enumerate(self.trajectories):
            logp_T = t.logp_T.copy()
            logp_T[t.action_mask_T] = logp_BL[row, : t.length].numpy()
            trajectories.append(dataclasses.replace(t, logp_T=logp_T))
        parts = [_recollated(part, trajectories, lm) for part in self.micro_batches]
        return dataclasses.replace(self, trajectories=trajectories, micro_batches=parts)

    def forget_teacher_states(self) -> None:
        """Drop the teacher's states: the teacher has moved, or the update is over."""
        for part in self.micro_batches:
            part.teacher_states_NH = None


def _recollated(part: MicroBatch, trajectories: Sequence[Trajectory], lm: LanguageModel) -> MicroBatch:
    batch = Batch.collate([trajectories[row] for row in part.rows], pad=lm.pad, device=lm.device)
    return dataclasses.replace(part, batch=batch)
