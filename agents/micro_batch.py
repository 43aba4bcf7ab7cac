"""A rollout split into micro-batches, the longest rows first, so that little of each is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rlgkd.devices import to_device
from rlgkd.lm.fused_loss import TeacherOutputs
from rlgkd.lm.mixture import ModelMixture, Scorer
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.own_format import as_read_by
from rlgkd.lm.shared_prefix import order_by_prefix
from rlgkd.ranks import ALONE, Ranks
from rlgkd.sharding import is_sharded
from rlgkd.teachers import AlignedTeacher, AlignedText, Answer, ModelTeacher, RoutedTeachers, Teacher, collate
from rlgkd.types import Batch, Episode, RowLayout, action_rows


@dataclass
class MicroBatch:
    """Some rows of a rollout as one batch on the model's device."""

    rows: list[int]
    """Their numbers in the rollout; none in a pass that is run because other ranks have one (`idle_batch`)."""
    batch: Batch
    teacher_batch: Batch | None = None
    """The same rows as a teacher with a format or tokens of its own reads them; None: as the student does."""
    teacher_states_NH: Tensor | None = None
    """The teacher's states at its actions, if they were computed early: one layer's [N, H] in all."""
    reader: LanguageModel | None = None
    """The model that reads these rows, of teachers of which each text has one."""
    answers: Sequence[Answer] = ()
    """What a teacher outside of the process was asked for, one for each row."""
    aligned: Sequence[AlignedText] = ()
    """The rows as a teacher with other tokens reads them, whose actions are those of `teacher_batch`."""

    @cached_property
    def mask_BT(self) -> Tensor:
        """[B, T], bool: true at the actions."""
        return self.batch.action_mask_BT

    @cached_property
    def _row_and_number_N(self) -> tuple[np.ndarray, np.ndarray]:
        """Each action's row in the rollout, and its number among the row's actions; on the host."""
        layouts = self.batch.layouts_B
        number_N = np.concatenate([np.arange(len(layout.actions)) for layout in layouts])
        return np.array(self.rows, dtype=np.int64)[action_rows(layouts)], number_N

    def per_action(self, values_BL: Tensor) -> Tensor:
        """Gather per-action values [B, L] of the rollout, on the host, into this micro-batch's [N]."""
        return to_device(values_BL[self._row_and_number_N], self.mask_BT.device)

    def write(self, values_BL: Tensor, values_N: Tensor) -> None:
        """Put this micro-batch's values [N] into per-action values [B, L] of the rollout, on the host."""
        values_BL[self._row_and_number_N] = values_N.to(values_BL)

    def per_row(self, values_B: Tensor) -> Tensor:
        """Repeat per-row values [B] of the rollout, on the host, for each of this micro-batch's N actions."""
        return to_device(values_B[self._row_and_number_N[0]], self.mask_BT.device)

    def gather(self, values_BT: Tensor) -> Tensor:
        """[N], the values at the actions' rows and columns of [B, T]."""
        return values_BT[self.batch.action_index_N]

    def scatter(self, values_N: Tensor) -> Tensor:
        """Put the actions' values [N] at their rows and columns of [B, T], with 0 elsewhere."""
        return values_N.new_zeros(self.mask_BT.shape).index_put(self.batch.action_index_N, values_N)

    def outputs_of(self, teacher: Teacher) -> TeacherOutputs:
        """What the teacher gives at the actions; waits for answers that are pending.

        A row whose answer has failed is filled, and must have no weight.
        """
        if isinstance(teacher, LanguageModel | ModelMixture | RoutedTeachers):
            return self.reader_of(teacher), self.states_of(teacher)
        if isinstance(teacher, AlignedTeacher):
            student_logp_N = self.gather(self.batch.logp_BT)
            states_MH = self.states_of(teacher.lm)
            return teacher.outputs(self.aligned, states_MH, self.read_by_teacher, student_logp_N)
        known = [None if answer.exception() else answer.result() for answer in self.answers] or [None]
        return collate(known, [len(layout.actions) for layout in self.batch.layouts_B], self.mask_BT.device)

    def reader_of(self, teacher: ModelTeacher) -> Scorer:
        """The model, or several as one, that reads these rows."""
        if not isinstance(teacher, RoutedTeachers):
            return teacher
        assert self.reader is not None, "these micro-batches were made without their teachers"
        return self.reader

    def states_of(self, teacher: ModelTeacher) -> Tensor:
        """[N, H], the teacher's states at its actions, by a forward pass if they were not computed early."""
        if self.teacher_states_NH is not None:
            return self.teacher_states_NH
        with torch.no_grad():
            return self.reader_of(teacher).states(self.read_by_teacher)

    @property
    def read_by_teacher(self) -> Batch:
        """The rows as the teacher reads them."""
        return self.batch if self.teacher_batch is None else self.teacher_batch


def micro_batches(
    lm: Scorer,
    episodes: Sequence[Episode],
    token_budget: int,
    teacher: Teacher | None = None,
    rows: Sequence[int] | None = None,
    *,
    ranks: Ranks = ALONE,
) -> Iterator[MicroBatch]:
    """Split into groups whose padded size stays within the budget (or one row), longest first.

    Samples of one prompt stay together, for the model may run over their prompt once. The rows of a `teacher` with a
    format or tokens of its own are collated as well. `rows` are those to be split, all by default. Where each text has
    a teacher of its own, rows are split by the model that reads them first. If a model is shared out over the `ranks`,
    all of these get as many, for its passes are collective calls.
    """
    rows = range(len(episodes)) if rows is None else rows
    if isinstance(teacher, RoutedTeachers):
        for reader in teacher.distinct:
            own = [row for row in rows if teacher.of(episodes[row].item) is reader]
            for part in micro_batches(lm, episodes, token_budget, reader, own):
                part.reader = reader
                yield part
        return
    lengths = [len(episodes[row].tokens_T) for row in rows]
    keys = [episodes[row].item.key if lm.shares_prompts else "" for row in rows]
    groups = list(_groups(order_by_prefix(lengths, keys), lengths, token_budget))
    most = max(ranks.gather(lambda: len(groups))) if _in_step(lm, teacher) else len(groups)
    for group in groups:
        chosen = [episodes[rows[index]] for index in group]
        part = MicroBatch([rows[index] for index in group], Batch.collate(chosen, pad=lm.pad, device=lm.device))
        if isinstance(teacher, LanguageModel | ModelMixture) and teacher.format is not None:
            part.teacher_batch = Batch.collate(as_read_by(teacher, chosen), pad=teacher.pad, device=teacher.device)
        if isinstance(teacher, AlignedTeacher):
            part.aligned = teacher.read(chosen)
            read = [text.episode for text in part.aligned]
            part.teacher_batch = Batch.collate(read, pad=teacher.lm.pad, device=teacher.lm.device)
        yield part
    for _ in range(most - len(groups)):
        yield idle_batch(lm)


def idle_batch(lm: Scorer) -> MicroBatch:
    """A row of two tokens without an action, for a pass from which nothing comes."""
    tokens_BT = torch.full((1, 2), lm.pad, device=lm.device)
    batch = Batch(
        tokens_BT=tokens_BT,
        attention_mask_BT=torch.ones_like(tokens_BT),
        action_mask_BT=torch.zeros_like(tokens_BT, dtype=torch.bool),
        logp_BT=torch.zeros_like(tokens_BT, dtype=torch.float32),
        layouts_B=(RowLayout(0, 2, 2, np.zeros(0, dtype=np.int64)),),
    )
    return MicroBatch([], batch)


def _in_step(lm: Scorer, teacher: Teacher | None) -> bool:
    """Whether a pass over a micro-batch is a collective call."""
    models = (lm, teacher)
    return any(isinstance(one, LanguageModel) and is_sharded(one.module) for one in models)


@torch.no_grad()
def prefetch_teacher_states(
    teacher: ModelTeacher, batches: Sequence[MicroBatch], *, should_continue: Callable[[], bool] = lambda: True
) -> None:
    """Compute the teacher's states of the micro-batches that lack them, as long as `should_continue` says so."""
    for batch in batches:
        if batch.teacher_states_NH is None and should_continue():
            batch.teacher_states_NH = batch.reader_of(teacher).states(batch.read_by_teacher)


@torch.no_grad()
def action_values(
    lm: Scorer,
    episodes: Sequence[Episode],
    token_budget: int,
    function: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[int] | None = None,
    *,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Compute `function` of (states [N, H], chosen tokens [N]) -> [N] for every action of `rows`, all by default.

    Returns [B, L] in float64 on the CPU, 0 past a row's end and in other rows.
    """
    lengths_B = torch.tensor([episode.length for episode in episodes], device="cpu")
    mask_BL = torch.arange(int(lengths_B.max()), device="cpu") < lengths_B[:, None]
    values_BL = torch.zeros(mask_BL.shape, dtype=torch.float64, device="cpu")
    read: list[int] = []
    values: list[Tensor] = []  # stays on the device until the end, to wait for it only once
    for part in micro_batches(lm, episodes, token_budget, rows=rows, ranks=ranks):
        read += part.rows
        values.append(function(lm.states(part.batch), lm.actions(part.batch)))
    if values:
        values_BL[read] = values_BL[read].masked_scatter(mask_BL[read], torch.cat(values).cpu().double())
    return values_BL


def _groups(order: Sequence[int], lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    group: list[int] = []
    longest = 0
    for row in order:
        longest = max(longest, lengths[row])
        if group and (len(group) + 1) * longest > token_budget:
            yield group
            group, longest = [], lengths[row]
        group.append(row)
    if group:
        yield group
