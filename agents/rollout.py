"""The texts of one update: trajectories, and their split into micro-batches.

Every process of a job has all trajectories and the micro-batches of its own rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlgkd.agents.agreement import Agreement
from rlgkd.agents.micro_batch import MicroBatch, action_values, micro_batches, prefetch_teacher_states
from rlgkd.lm.fused_loss import fused_logp
from rlgkd.lm.mixture import ModelMixture, Scorer
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.own_format import as_read_by
from rlgkd.ops.byte_spans import KnownSpans
from rlgkd.ranks import ALONE, Ranks
from rlgkd.teachers import AlignedTeacher, Answer, ModelTeacher, RoutedTeachers, Teacher, has_failed
from rlgkd.types import OFF_POLICY, ON_POLICY, Batch, Source, Trajectory


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The texts of one update, on-policy ones first."""

    trajectories: list[Trajectory] = field(default_factory=list)
    micro_batches: list[MicroBatch] = field(default_factory=list)
    student_fraction: float = 1.0
    """The probability with which its batches, or prompts, were drawn on-policy."""
    replayed: range = range(0)
    """The rows of texts that were sampled in earlier updates."""
    discarded: list[Trajectory] = field(default_factory=list)
    """On-policy texts that were sampled and scored, and from which nothing is learned."""
    tokens: int = 0
    """Tokens that were generated, or read from data, as callbacks counted them on all ranks."""
    stopped: bool = False
    """Whether a callback, on any rank, asked to stop: texts may be missing."""
    ranks: Ranks = ALONE
    rows: Sequence[int] | None = None
    """The rows whose passes this process runs; None is all."""
    untaught: Sequence[int] = ()
    """Rows that a teacher has nothing to say of: it reads a right text of their group, and there is none."""
    off_policy_from: float | None = None
    """The reward from which an off-policy text is learned from; None is any."""
    answers: Mapping[int, Answer] | None = None
    """What a teacher outside of the process was asked for, by this process's rows; None without such a teacher."""
    agreement: Agreement | None = None
    """What is measured of student and teacher while the loss reads them; None is nothing."""
    importance_BL: Tensor | None = None
    """Weights of actions in what was sampled elsewhere (rlgkd.agents.mismatch); None is 1 everywhere."""
    sampler_failed: float = 0.0
    """Share of the texts that servers failed to sample, and that are left out."""

    @property
    def on_policy(self) -> list[Trajectory]:
        """The trajectories that were sampled with the student."""
        return [t for t in self.trajectories if t.source in ON_POLICY]

    @property
    def fresh(self) -> list[Trajectory]:
        """The trajectories of this update, without those of earlier ones."""
        return [t for row, t in enumerate(self.trajectories) if row not in self.replayed]

    @property
    def longest(self) -> int:
        """Actions of the longest trajectory."""
        return max(t.length for t in self.trajectories)

    def split(self, lm: LanguageModel, token_budget: int, teacher: Teacher | None = None) -> Rollout:
        """With micro-batches, if it has none yet."""
        parts = self.micro_batches or list(
            micro_batches(lm, self.trajectories, token_budget, teacher, self.rows, ranks=self.ranks)
        )
        if self.answers is not None:
            for part in parts:
                part.answers = [self.answers[row] for row in part.rows]
        return dataclasses.replace(self, micro_batches=parts)

    def failed_B(self, *, wait: bool = False) -> Tensor:
        """[B], bool: rows for which an outside teacher has failed, so that they have no divergence.

        The same on all ranks. Without `wait`, those of which this is known by now.
        """
        failed_B = torch.zeros(len(self.trajectories), dtype=torch.int32, device="cpu")
        if self.answers is None:
            return failed_B.bool()
        for row, answer in self.answers.items():
            failed_B[row] = answer.exception() is not None if wait else has_failed(answer)
        return self.ranks.sum(failed_B).bool()

    @property
    def untaught_B(self) -> Tensor:
        """[B], bool: the rows of `untaught` and off-policy texts below `off_policy_from`, which have no divergence."""
        untaught_B = torch.zeros(len(self.trajectories), dtype=torch.bool, device="cpu")
        untaught_B[list(self.untaught)] = True
        if self.off_policy_from is not None:
            for row, t in enumerate(self.trajectories):
                untaught_B[row] |= t.source in OFF_POLICY and not t.score.reward >= self.off_policy_from  # also NaN
        return untaught_B

    def action_values(self, lm: Scorer, token_budget: int, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`action_values` of all rows, [B, L], each computed by the process whose row it is."""
        episodes = as_read_by(lm, self.trajectories)
        return self.ranks.sum(action_values(lm, episodes, token_budget, function, self.rows, ranks=self.ranks))

    def log_probabilities(self, lm: ModelTeacher, token_budget: int) -> Tensor:
        """[B, L], the log-probability of each action in nats, 0 past a row's end; of each row by its own teacher."""
        if isinstance(lm, RoutedTeachers):
            return self._log_probabilities_of_each(lm, token_budget)
        return self.action_values(lm, token_budget, lambda states_NH, actions_N: fused_logp(lm, states_NH, actions_N))

    def _log_probabilities_of_each(self, teachers: RoutedTeachers, token_budget: int) -> Tensor:
        logp_BL = torch.zeros(len(self.trajectories), self.longest, dtype=torch.float64, device="cpu")
        for lm in teachers.distinct:
            mine = teachers.rows_of(lm, [t.item for t in self.trajectories])
            kept = mine if self.rows is None else [row for row in self.rows if row in {*mine}]
            logp_BL += dataclasses.replace(self, rows=kept).log_probabilities(lm, token_budget)
        return logp_BL

    def log_ratios(self, teacher: Teacher, token_budget: int) -> Tensor:
        """[B, L], log p_S(y_n) - log p_T(y_n) in nats, p_S as it sampled; 0 past a row's end.

        Of a teacher with other tokens each token has an equal share of its span's, so that a row's sum is its text's.
        Rows for which the teacher has failed (`failed_B`) or has nothing to say (`untaught`) have 0.
        """
        if isinstance(teacher, AlignedTeacher):
            return self._span_log_ratios(teacher)
        if isinstance(teacher, LanguageModel | ModelMixture | RoutedTeachers):
            teacher_BL, known_B = self.log_probabilities(teacher, token_budget), ~self.failed_B()
        else:
            teacher_BL, known_B = self._answered_log_probabilities(), ~self.failed_B(wait=True)
        ratio_BL = -teacher_BL
        for row, t in enumerate(self.trajectories):
            if known_B[row]:
                ratio_BL[row, : t.length] += torch.from_numpy(t.logp_T[t.action_mask_T])
        return ratio_BL.masked_fill(self.untaught_B[:, None], 0.0)

    @torch.no_grad()
    def _span_log_ratios(self, teacher: AlignedTeacher) -> Tensor:
        """`log_ratios` of a teacher with other tokens, whose states are kept for the gradient."""
        prefetch_teacher_states(teacher.lm, self.micro_batches)
        ratio_BL = torch.zeros(len(self.trajectories), self.longest, dtype=torch.float64, device="cpu")
        for part in self.micro_batches:
            known = part.outputs_of(teacher)
            assert isinstance(known, KnownSpans), "through a map no single token is seen"
            written_N = part.gather(part.batch.logp_BT) + known.other_logp_N
            part.write(ratio_BL, (written_N - known.token_logp_N) / known.tokens_N)
        return self.ranks.sum(ratio_BL)

    def aligned_share(self) -> float:
        """Share of the tokens that a teacher with other tokens writes in one token too, all processes together."""
        single = sum(text.single for part in self.micro_batches for text in part.aligned)
        (total,) = self.ranks.sum_numbers([float(single)])
        return total / sum(t.length for t in self.trajectories)

    def _answered_log_probabilities(self) -> Tensor:
        """`log_probabilities` of an outside teacher, each known to the process that has asked for it."""
        logp_BL = torch.zeros(len(self.trajectories), self.longest, dtype=torch.float64, device="cpu")
        for row, answer in (self.answers or {}).items():
            if answer.exception() is None:
                logp_BL[row, : self.trajectories[row].length] = torch.from_numpy(answer.result().token_logp_L)
        return self.ranks.sum(logp_BL)

    def mismatch(self, logp_BL: Tensor) -> float:
        """The mean |log p - log p as it sampled|, in nats, over the tokens of the student's own texts; NaN of none."""
        # In float32 it is rounding; more says that the policy which trains is not the one that sampled (dropout, say).
        apart = [
            np.abs(logp_BL[row, : t.length].numpy() - t.logp_T[t.action_mask_T])
            for row, t in enumerate(self.trajectories)
            if t.source is Source.STUDENT
        ]
        return float(np.concatenate(apart).mean()) if apart else math.nan

    def with_log_probabilities(
        self,
        logp_BL: Tensor | None,
        lm: LanguageModel,
        *,
        entropy_BL: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> Rollout:
        """With other log-probabilities, and entropies, of the actions of `rows`, all by default.

        In nats; None leaves what is there. The teacher's states stay.
        """
        given = [(name, new) for name, new in (("logp_T", logp_BL), ("entropy_T", entropy_BL)) if new is not None]
        trajectories = list(self.trajectories)
        for row in range(len(trajectories)) if rows is None else rows:
            t = trajectories[row]
            changed = {name: getattr(t, name).copy() for name, _ in given}
            for name, new_BL in given:
                changed[name][t.action_mask_T] = new_BL[row, : t.length].numpy()
            trajectories[row] = dataclasses.replace(t, **changed)
        parts = [_recollated(part, trajectories, lm) for part in self.micro_batches]
        return dataclasses.replace(self, trajectories=trajectories, micro_batches=parts)

    def forget_teacher_states(self) -> None:
        """Drop the teacher's states: the teacher has moved, or the update is over."""
        for part in self.micro_batches:
            part.teacher_states_NH = None


def rows_by_tokens(trajectories: Sequence[Trajectory], ranks: Ranks) -> list[int]:
    """This rank's rows, if all ranks are to have about the same number of tokens; a prompt's samples stay together."""
    groups: list[list[int]] = []
    for row, t in enumerate(trajectories):
        if not groups or t.sample == 0 or t.item.key != trajectories[row - 1].item.key:
            groups.append([])
        groups[-1].append(row)
    costs = [sum(len(trajectories[row].tokens_T) for row in group) for group in groups]
    return [row for number in ranks.deal(costs) for row in groups[number]]


def _recollated(part: MicroBatch, trajectories: Sequence[Trajectory], lm: LanguageModel) -> MicroBatch:
    if not part.rows:
        return part
    batch = Batch.collate([trajectories[row] for row in part.rows], pad=lm.pad, device=lm.device)
    return dataclasses.replace(part, batch=batch)
